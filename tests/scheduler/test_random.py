"""Random work on the scheduler and the real block manager, against a plain model of both.

The model keeps for each branch where every visible token lies, as told by the commits, and for each
stream since when it waits. It knows the order and the bounds of docs/scheduling.md, not how the
scheduler comes by them.
"""

import os
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qvg_engine.block_manager.manager import BlockManager, pages_for
from qvg_engine.errors import CapacityError
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.plan import ScheduledPass, StepPlan
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit, count_tokens

NUM_OPERATIONS = int(os.environ.get("QVG_SOAK_OPERATIONS", "200000"))
NUM_SEEDS = 100
CHECK_EVERY = 50

PAGE_SIZE = 4
CAPACITY = Needs(pages=40, decoder_slots=4, text_rows=50)
MAX_STREAMS = 5
MAX_BATCH_TOKENS = 30
AGING_STEPS = 3
MIN_PRIORITY, MAX_PRIORITY = -2, 2

Place = tuple[int, int]
"""Page and slot of a token."""


@dataclass
class Record:
    """What should be true of one stream."""

    number: int
    needs: Needs
    priority: int
    added_step: int
    tables: list[dict[int, Place]]
    next_tokens: list[int]
    served_step: int | None = None
    gang: Gang | None = None
    ready_step: int | None = None

    @property
    def is_running(self) -> bool:
        return self.served_step is not None

    @property
    def deadline(self) -> int:
        """The last step that may pass before a ready stream runs."""
        assert self.served_step is not None
        assert self.ready_step is not None
        overtaken_until = self.served_step + (self.priority - MIN_PRIORITY) * AGING_STEPS
        return max(self.ready_step, overtaken_until + 1) + MAX_STREAMS - 1

    def truncate(self, branch: int, at_token: int) -> None:
        self.tables[branch] = truncated(self.tables[branch], at_token)
        self.next_tokens[branch] = at_token


def truncated(table: dict[int, Place], at_token: int) -> dict[int, Place]:
    return {token: place for token, place in table.items() if token < at_token}


def pages_of(tables: list[dict[int, Place]]) -> set[int]:
    return {page for table in tables for page, _ in table.values()}


@dataclass
class World:
    """The scheduler under test, and the model."""

    manager: BlockManager = field(default_factory=lambda: BlockManager(CAPACITY.pages, PAGE_SIZE))
    records: dict[str, Record] = field(default_factory=dict)
    step_index: int = 0
    num_added: int = 0

    def __post_init__(self) -> None:
        config = SchedulerConfig(
            max_streams=MAX_STREAMS, max_batch_tokens=MAX_BATCH_TOKENS, aging_steps=AGING_STEPS
        )
        self.scheduler = Scheduler(config, block_manager=self.manager, capacity=CAPACITY)

    def add(self, rng: Random) -> None:
        request_id = f"stream-{self.num_added}"
        needs = Needs(
            pages=rng.randint(0, CAPACITY.pages + 1) // rng.randint(1, 4),
            decoder_slots=rng.randint(0, 2),
            text_rows=rng.randint(0, 20),
        )
        num_branches = rng.randint(1, 2)
        priority = rng.randint(MIN_PRIORITY, MAX_PRIORITY)
        if needs.pages > CAPACITY.pages:
            with pytest.raises(CapacityError):
                self.scheduler.add(request_id, needs, num_branches=num_branches)
            return
        self.scheduler.add(request_id, needs, num_branches=num_branches, priority=priority)
        self.records[request_id] = Record(
            number=self.num_added,
            needs=needs,
            priority=priority,
            added_step=self.step_index,
            tables=[{} for _ in range(num_branches)],
            next_tokens=[0] * num_branches,
        )
        self.num_added += 1

    def offer(self, rng: Random) -> None:
        for request_id, record in self.records.items():
            if record.gang is not None and rng.random() < 0.9:
                continue
            gang = None if rng.random() < 0.1 else random_gang(rng, record)
            self.scheduler.offer(request_id, gang)
            record.gang = gang
            if gang is None or not record.is_running:
                record.ready_step = None
            elif record.ready_step is None:
                record.ready_step = self.step_index

    def step(self, rng: Random) -> None:
        plan = self.scheduler.schedule()
        self.check_admission(plan)
        ran = self.check_picks(plan)
        self.apply_early_truncation(plan)
        if rng.random() < 0.15:
            self.scheduler.rollback(plan)
            return
        failed = {request_id for request_id in ran if rng.random() < 0.1}
        self.scheduler.complete(plan, failed=failed)
        self.apply_admission(plan)
        for scheduled in plan.units:
            if scheduled.request_id not in failed:
                self.apply_commit(scheduled)
        for request_id in ran:
            record = self.records[request_id]
            record.served_step, record.gang, record.ready_step = self.step_index, None, None
        self.step_index += 1

    def evict(self, rng: Random) -> None:
        running = self.running()
        if not running:
            return
        request_id = rng.choice(running)
        record = self.records[request_id]
        branch = rng.randrange(len(record.tables))
        sink_tokens = rng.randint(0, 6)
        window_start = rng.randint(0, record.next_tokens[branch] + 1)
        num_before = len(pages_of(record.tables))
        num_freed = self.scheduler.evict(
            request_id, branch, sink_tokens=sink_tokens, window_start=window_start
        )
        record.tables[branch] = {
            token: place
            for token, place in record.tables[branch].items()
            if token < sink_tokens or token >= window_start
        }
        assert num_freed == num_before - len(pages_of(record.tables))

    def finish(self, rng: Random) -> None:
        candidates = self.running() if rng.random() < 0.8 else list(self.records)
        if candidates:
            self.finish_one(rng.choice(candidates))

    def finish_one(self, request_id: str) -> None:
        num_free = self.manager.num_free
        num_pages = len(pages_of(self.records.pop(request_id).tables))
        assert self.scheduler.finish(request_id) == num_pages
        assert self.manager.num_free == num_free + num_pages

    def running(self) -> list[str]:
        return [request_id for request_id, record in self.records.items() if record.is_running]

    def check_admission(self, plan: StepPlan) -> None:
        assert plan.step_index == self.step_index
        held = sum((self.records[rid].needs for rid in self.running()), start=Needs())
        num_running = len(self.running())
        expected = []
        waiting = [item for item in self.records.items() if not item[1].is_running]
        waiting.sort(
            key=lambda item: (item[1].added_step + item[1].priority * AGING_STEPS, item[1].number)
        )
        for request_id, record in waiting:
            held += record.needs
            if num_running == MAX_STREAMS or not held.fits(CAPACITY):
                break
            num_running += 1
            expected.append(request_id)
        assert plan.admitted == tuple(expected)

    def apply_admission(self, plan: StepPlan) -> None:
        for request_id in plan.admitted:
            record = self.records[request_id]
            record.served_step = self.step_index
            record.ready_step = None if record.gang is None else self.step_index

    def check_picks(self, plan: StepPlan) -> tuple[str, ...]:
        """Whole gangs within the budget, nobody idle who would fit, nobody overdue."""
        ran = plan.request_ids
        gangs = [self.records[request_id].gang or () for request_id in ran]
        assert [scheduled.unit for scheduled in plan.units] == [u for gang in gangs for u in gang]
        assert plan.num_tokens <= MAX_BATCH_TOKENS or len(ran) == 1
        for request_id, record in self.records.items():
            if record.gang is None or request_id in ran:
                continue
            if record.is_running or request_id in plan.admitted:
                assert plan.num_tokens + count_tokens(record.gang) > MAX_BATCH_TOKENS
            if record.is_running:
                assert self.step_index < record.deadline, f"{request_id} is overdue"
        fresh = [p for s in plan.units if s.commit is not None for p in s.commit.page_ids.tolist()]
        assert len(set(fresh)) == len(fresh)
        return ran

    def apply_early_truncation(self, plan: StepPlan) -> None:
        for scheduled in plan.units:
            intent = scheduled.unit.commit
            if intent is not None and intent.free_first and intent.at_token is not None:
                for branch in intent.branches:
                    self.records[scheduled.request_id].truncate(branch, intent.at_token)

    def apply_commit(self, scheduled: ScheduledPass) -> None:
        commit, intent = scheduled.commit, scheduled.unit.commit
        assert (commit is None) == (intent is None)
        if commit is None or intent is None:
            return
        record = self.records[scheduled.request_id]
        for branch in intent.branches:
            if intent.at_token is not None:
                record.truncate(branch, intent.at_token)
            start = record.next_tokens[branch]
            for index in range(intent.num_tokens):
                page = int(commit.page_ids[index // PAGE_SIZE])
                record.tables[branch][start + index] = (page, index % PAGE_SIZE)
            record.next_tokens[branch] = start + intent.num_tokens

    def check(self) -> None:
        self.scheduler.check_integrity()
        seen: set[int] = set()
        for request_id, record in self.records.items():
            branch_ids = self.scheduler.branch_ids(request_id)
            assert len(branch_ids) == (len(record.tables) if record.is_running else 0)
            for branch_id, table in zip(branch_ids, record.tables, strict=False):
                assert self.read(branch_id) == table
            pages = pages_of(record.tables)
            assert len(pages) <= record.needs.pages
            assert seen.isdisjoint(pages), "a page of one stream is read by another"
            seen |= pages
        assert self.manager.num_used == len(seen)
        assert self.manager.num_free + len(seen) == CAPACITY.pages

    def read(self, branch_id: int) -> dict[int, Place]:
        entries = self.manager.read_table(branch_id)
        columns = (entries.page_id, entries.first_token, entries.begin, entries.end)
        return {
            first + slot: (page, slot)
            for page, first, begin, end in zip(*(c.tolist() for c in columns), strict=True)
            for slot in range(begin, end)
        }

    def end(self) -> None:
        for request_id in list(self.records):
            self.finish_one(request_id)
        assert not self.scheduler.has_work
        assert self.manager.num_used == 0
        assert self.manager.num_unreserved == CAPACITY.pages
        self.scheduler.check_integrity()


def random_gang(rng: Random, record: Record) -> Gang:
    """One or two passes that the reservation of the stream can take."""
    num_branches = len(record.tables)
    unwritten = set(range(num_branches))
    tables = record.tables
    num_taken = 0
    units: list[PassUnit] = []
    for branch in rng.sample(range(num_branches), rng.randint(1, num_branches)):
        num_tokens = rng.randint(1, 20)
        kind, intent = PassKind.DENOISE, random_intent(rng, record, unwritten, num_tokens)
        if intent is not None:
            left = without_freed(tables, intent)
            num_pages = num_taken + pages_for(intent.num_tokens, PAGE_SIZE)
            if len(pages_of(left)) + num_pages <= record.needs.pages:
                kind, tables, num_taken = PassKind.COMMIT, left, num_pages
                unwritten -= set(intent.branches)
            else:
                intent = None
        units.append(PassUnit(branch=branch, kind=kind, num_tokens=num_tokens, commit=intent))
    return tuple(units)


def without_freed(tables: list[dict[int, Place]], intent: CommitIntent) -> list[dict[int, Place]]:
    """The tables once the commit has begun."""
    if not intent.free_first or intent.at_token is None:
        return tables
    return [
        truncated(table, intent.at_token) if branch in intent.branches else table
        for branch, table in enumerate(tables)
    ]


def random_intent(
    rng: Random, record: Record, branches: set[int], num_tokens: int
) -> CommitIntent | None:
    """A commit to some of `branches`, or None."""
    if not branches or rng.random() < 0.4:
        return None
    chosen = tuple(rng.sample(sorted(branches), rng.randint(1, len(branches))))
    limit = min(record.next_tokens[branch] for branch in chosen)
    replaces = rng.random() < 0.4
    return CommitIntent(
        branches=chosen,
        num_tokens=rng.randint(1, num_tokens),
        at_token=rng.randint(0, limit) if replaces else None,
        free_first=replaces and rng.random() < 0.5,
    )


randoms = st.randoms(use_true_random=False)


class SchedulerMachine(RuleBasedStateMachine):
    """The operations in any order that hypothesis finds interesting."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(rng=randoms)
    def add(self, rng: Random) -> None:
        self.world.add(rng)

    @rule(rng=randoms)
    def offer_and_step(self, rng: Random) -> None:
        self.world.offer(rng)
        self.world.step(rng)

    @rule(rng=randoms)
    def step(self, rng: Random) -> None:
        self.world.step(rng)

    @rule(rng=randoms)
    def evict(self, rng: Random) -> None:
        self.world.evict(rng)

    @rule(rng=randoms)
    def finish(self, rng: Random) -> None:
        self.world.finish(rng)

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.end()


SchedulerMachine.TestCase.settings = settings(
    max_examples=400,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestSchedulerMachine = SchedulerMachine.TestCase


def test_no_leak_in_a_long_random_run() -> None:
    for seed in range(NUM_SEEDS):
        rng = Random(seed)
        world = World()
        operations = [world.add, world.offer, world.step, world.evict, world.finish]
        weights = [2, 12, 12, 2, 2]
        chosen = rng.choices(operations, weights, k=NUM_OPERATIONS // NUM_SEEDS)
        for index, operation in enumerate(chosen):
            operation(rng)
            if index % CHECK_EVERY == 0:
                world.check()
        world.end()
