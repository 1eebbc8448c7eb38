"""The scheduler: who is admitted, and which passes the next step runs.

It owns the waiting line, the running streams and their reservations, and drives the block manager's
commits. It knows no tensor, no model and no clock: time is counted in steps, and the same calls
give the same plans. docs/scheduling.md explains the order and proves the bounds.
"""

from collections.abc import Collection, Iterable

from qvg_engine.block_manager.manager import BlockManager, PendingCommit
from qvg_engine.errors import CapacityError, RequestError
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.plan import ScheduledPass, StepPlan
from qvg_engine.scheduler.stats import SchedulerStats, StepTotals
from qvg_engine.scheduler.stream import Stream
from qvg_engine.scheduler.unit import CommitIntent, Gang, check_gang, count_tokens
from qvg_engine.scheduler.waiting import WaitingLine

MAX_PRIORITY = 100
"""Priorities lie in [-MAX_PRIORITY, MAX_PRIORITY]: aging outweighs any of them in bounded time."""


class Scheduler:
    """Plans steps over many streams, one at a time: `schedule`, run it, `complete` or `rollback`.

    `capacity` is what all admitted streams may hold together; the scheduler is the only one who
    opens owners in `block_manager`. Not thread-safe.
    """

    def __init__(
        self, config: SchedulerConfig, *, block_manager: BlockManager, capacity: Needs
    ) -> None:
        assert capacity.pages <= block_manager.num_pages, "the capacity has more pages than exist"
        self._config = config
        self._block_manager = block_manager
        self._capacity = capacity
        self._held = Needs()
        self._streams: dict[str, Stream] = {}
        self._waiting = WaitingLine()
        self._running: dict[str, Stream] = {}
        self._picked: list[Stream] = []
        self._plan: StepPlan | None = None
        self._step_index = 0
        self._num_added = 0
        self._num_turns = 0
        self._totals = StepTotals()

    @property
    def has_work(self) -> bool:
        """Whether a stream waits or runs."""
        return bool(self._streams)

    @property
    def num_waiting(self) -> int:
        """Streams that are not admitted yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Streams that are admitted, ready or not."""
        return len(self._running)

    def add(self, request_id: str, needs: Needs, *, num_branches: int, priority: int = 0) -> None:
        """Take in a stream; it waits, holding nothing, until `schedule` admits it.

        `needs` is its peak, `num_branches` the branches to open at admission; a smaller `priority`
        goes first. Raises CapacityError if it could not even run alone, and RequestError for an
        id in use or a priority out of range.
        """
        assert num_branches > 0, f"num_branches must be > 0: {num_branches}"
        if request_id in self._streams:
            raise RequestError(f"request_id {request_id!r} is in use; give another one")
        self.check_request(request_id, needs, priority=priority)
        stream = Stream(
            request_id=request_id,
            needs=needs,
            num_branches=num_branches,
            number=self._num_added,
            handicap=priority * self._config.aging_steps,
            added_step=self._step_index,
        )
        self._num_added += 1
        self._streams[request_id] = stream
        self._waiting.insert(stream)

    def check_request(self, request_id: str, needs: Needs, *, priority: int) -> None:
        """Raise what `add` would raise for a stream that could not even run alone.

        Reads settings only, so any thread may ask at any time.
        """
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise RequestError(
                f"priority of {request_id!r} is {priority}; "
                f"give a number from {-MAX_PRIORITY} to {MAX_PRIORITY}"
            )
        if not needs.fits(self._capacity):
            raise CapacityError(self._explain_misfit(request_id, needs))

    def offer(self, request_id: str, gang: Gang | None) -> None:
        """Set what the stream runs next; None if it is not ready.

        The gang stays on offer until a step that ran it is completed, or the next call. A waiting
        stream may offer, and then can run in the step that admits it. A stream that runs in the
        plan at hand may not.
        """
        stream = self._get(request_id)
        assert stream not in self._picked, f"{request_id!r} runs in the plan at hand"
        if gang is not None:
            check_gang(gang, num_branches=stream.num_branches)
        stream.gang = gang
        stream.num_gang_tokens = 0 if gang is None else count_tokens(gang)

    def schedule(self) -> StepPlan:
        """Admit what fits, pick ready gangs, begin their commits; the plan of the next step.

        Every call is followed by `complete` or `rollback` of its plan. Raises OutOfPagesError if
        a stream commits more than it reserved (its needs were wrong); then nothing happened.
        """
        assert self._plan is None, "complete() or rollback() the plan at hand first"
        admitted = self._admit()
        picked = self._pick()
        try:
            units = self._begin(picked)
        except BaseException:
            self._take_back(admitted)
            raise
        self._picked = picked
        self._plan = StepPlan(
            step_index=self._step_index,
            admitted=tuple(stream.request_id for stream in admitted),
            units=units,
        )
        return self._plan

    def complete(self, plan: StepPlan, *, failed: Collection[str] = ()) -> None:
        """The step ran: publish its commits, but roll back those of the streams in `failed`.

        The streams that ran are not ready until they offer again; a failed one still holds what
        it reserved until `finish`.
        """
        assert plan is self._plan, "not the plan at hand"
        assert set(failed) <= {stream.request_id for stream in self._picked}, (
            f"{failed} did not run"
        )
        for scheduled in plan.units:
            if scheduled.commit is None:
                continue
            if scheduled.request_id in failed:
                self._block_manager.rollback(scheduled.commit)
            else:
                self._block_manager.publish(scheduled.commit)
        for stream in self._picked:
            self._give_turn(stream)
            stream.gang = None
            stream.num_gang_tokens = 0
        self._totals.count(plan, num_streams=len(self._picked))
        self._step_index += 1
        self._end_plan()

    def rollback(self, plan: StepPlan) -> None:
        """The whole step failed: all is as before `schedule`.

        Commits are rolled back, gangs stay on offer, and the streams of `plan.admitted` wait again
        where they waited. Only what a `free_first` commit dropped stays dropped.
        """
        assert plan is self._plan, "not the plan at hand"
        self._rollback_commits(scheduled.commit for scheduled in plan.units)
        self._take_back([self._streams[request_id] for request_id in plan.admitted])
        self._end_plan()

    def evict(
        self, request_id: str, branch_index: int, *, sink_tokens: int, window_start: int
    ) -> int:
        """Drop the branch's tokens t with sink_tokens <= t < window_start; the pages freed.

        Between steps only.
        """
        self._assert_between_steps()
        branch_id = self._get(request_id).branch_ids[branch_index]
        return self._block_manager.evict(
            branch_id, sink_tokens=sink_tokens, window_start=window_start
        )

    def finish(self, request_id: str) -> int:
        """Forget a stream, waiting or running, and give back all that it held; the pages freed.

        Between steps only. Raises RequestError for an unknown id.
        """
        self._assert_between_steps()
        stream = self._get(request_id)
        del self._streams[request_id]
        if not stream.is_running:
            self._waiting.remove(stream)
            return 0
        return self._release(stream)

    def branch_ids(self, request_id: str) -> tuple[int, ...]:
        """The block manager's ids of the stream's branches; none while it waits."""
        return self._get(request_id).branch_ids

    def stats(self) -> SchedulerStats:
        """The figures now."""
        totals = self._totals
        return SchedulerStats(
            num_waiting=self.num_waiting,
            num_running=self.num_running,
            num_pages_used=self._block_manager.num_used,
            num_pages_free=self._block_manager.num_free,
            num_pages_reserved=self._held.pages,
            num_steps=totals.num_steps,
            num_passes_last_step=totals.num_passes_last_step,
            mean_streams_per_step=totals.mean(totals.num_streams),
            mean_passes_per_step=totals.mean(totals.num_passes),
            mean_tokens_per_step=totals.mean(totals.num_tokens),
        )

    def check_integrity(self) -> None:
        """Assert that all bookkeeping, the block manager's included, agrees."""
        self._waiting.check_integrity()
        waiting = {stream.request_id for stream in self._waiting}
        assert waiting.isdisjoint(self._running), "a stream waits and runs"
        assert waiting | self._running.keys() == self._streams.keys(), "a stream is lost"
        held = sum((stream.needs for stream in self._running.values()), start=Needs())
        assert held == self._held, f"running streams need {held}, {self._held} is held"
        assert held.fits(self._capacity), f"{held} is held of {self._capacity}"
        assert len(self._running) <= self._config.max_streams, "too many streams run"
        for stream in self._running.values():
            assert len(stream.branch_ids) == stream.num_branches, f"{stream} lacks branches"
        manager = self._block_manager
        assert manager.num_unreserved == manager.num_pages - held.pages, "reservations differ"
        manager.check_integrity()

    def _admit(self) -> list[Stream]:
        """Admit from the head of the line for as long as the next one fits."""
        admitted = []
        for stream in self._waiting:
            if len(self._running) == self._config.max_streams:
                break
            if not (self._held + stream.needs).fits(self._capacity):
                break
            self._open(stream)
            admitted.append(stream)
        self._waiting.remove_first(len(admitted))
        return admitted

    def _open(self, stream: Stream) -> None:
        manager = self._block_manager
        manager.open_owner(
            stream.request_id,
            stream.needs.pages,
            codebook_slots=stream.needs.codebook_slots,
            codebook_rows=stream.needs.codebook_rows,
            refinement_pages=stream.needs.refinement_pages,
        )
        stream.branch_ids = tuple(
            manager.open_branch(stream.request_id) for _ in range(stream.num_branches)
        )
        self._give_turn(stream)
        self._held += stream.needs
        self._running[stream.request_id] = stream

    def _give_turn(self, stream: Stream) -> None:
        """Put it behind those of its priority that were served before."""
        stream.served_step = self._step_index
        stream.turn = self._num_turns
        self._num_turns += 1

    def _release(self, stream: Stream) -> int:
        """The reverse of `_open`, whatever the stream did since."""
        num_freed = self._block_manager.close_owner(stream.request_id)
        stream.branch_ids = ()
        self._held -= stream.needs
        del self._running[stream.request_id]
        return num_freed

    def _take_back(self, admitted: Iterable[Stream]) -> None:
        for stream in admitted:
            self._release(stream)
            self._waiting.insert(stream)

    def _pick(self) -> list[Stream]:
        """Ready streams in order of service, as many gangs as the token budget takes.

        A gang that is too large for what is left is passed over. The first in order always runs,
        alone if it exceeds the whole budget; so whoever is passed over gets there.
        """
        ready = [stream for stream in self._running.values() if stream.gang is not None]
        ready.sort(key=lambda stream: stream.service_place)
        budget = self._config.max_batch_tokens
        if ready and ready[0].num_gang_tokens > budget:
            return ready[:1]
        picked = []
        for stream in ready:
            if stream.num_gang_tokens <= budget:
                budget -= stream.num_gang_tokens
                picked.append(stream)
        return picked

    def _begin(self, picked: Iterable[Stream]) -> tuple[ScheduledPass, ...]:
        units: list[ScheduledPass] = []
        try:
            for stream in picked:
                assert stream.gang is not None
                for unit in stream.gang:
                    units.append(
                        ScheduledPass(
                            request_id=stream.request_id,
                            branch_id=stream.branch_ids[unit.branch],
                            unit=unit,
                            commit=self._begin_commit(stream, unit.commit),
                        )
                    )
        except BaseException:
            self._rollback_commits(scheduled.commit for scheduled in units)
            raise
        return tuple(units)

    def _begin_commit(self, stream: Stream, intent: CommitIntent | None) -> PendingCommit | None:
        if intent is None:
            return None
        return self._block_manager.begin_commit(
            [stream.branch_ids[branch] for branch in intent.branches],
            num_tokens=intent.num_tokens,
            at_token=intent.at_token,
            free_first=intent.free_first,
        )

    def _rollback_commits(self, commits: Iterable[PendingCommit | None]) -> None:
        for commit in commits:
            if commit is not None:
                self._block_manager.rollback(commit)

    def _end_plan(self) -> None:
        self._plan = None
        self._picked = []

    def _get(self, request_id: str) -> Stream:
        stream = self._streams.get(request_id)
        if stream is None:
            raise RequestError(f"no request {request_id!r}; it was never added, or has ended")
        return stream

    def _assert_between_steps(self) -> None:
        assert self._plan is None, "complete() or rollback() the plan at hand first"

    def _explain_misfit(self, request_id: str, needs: Needs) -> str:
        num_tokens = self._capacity.pages * self._block_manager.page_size
        return (
            f"request {request_id!r} can never fit: it needs {needs.shortfall(self._capacity)}; "
            f"up to {self._capacity} ({num_tokens:,} tokens of KV-cache) would fit; "
            "shorten its window or length, or give the engine more"
        )
