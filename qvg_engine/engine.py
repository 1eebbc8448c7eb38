"""The engine: requests in, chunks of many videos out, one batched forward a step."""

import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvg_engine.accounting import EngineStats
from qvg_engine.admission import encode_text, open_stream
from qvg_engine.block_manager.warm_up import warm_up
from qvg_engine.cache import Cache
from qvg_engine.config import EngineConfig
from qvg_engine.decoder_slots import DecoderSlots
from qvg_engine.errors import EngineDeadError, QvgError, RequestError
from qvg_engine.generate import GeneratedVideo, generate
from qvg_engine.loading import load_family
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.program import Advance, OutsideWork, TextRows
from qvg_engine.output import FinishReason, VideoOutput
from qvg_engine.request import VideoRequest
from qvg_engine.runner import Runner, StepResult, finite_flags
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.plan import StepPlan
from qvg_engine.stream import Stream, by_request
from qvg_engine.text_pool import TextPool
from qvg_engine.tracing import make_trace

Outputs = list[VideoOutput]


class VideoEngine:
    """Generates many videos at once; everything lives in the instance.

    `add_request`, `abort_request` and `update_request` may be called from any thread at any time;
    they take effect at the start of the next `step`. One thread at a time calls `step`.
    """

    def __init__(
        self, config: EngineConfig | None = None, *, family: ModelFamily | None = None
    ) -> None:
        """Load the model (or take `family`) and allocate pages and workspace.

        Raises `ConfigError` or `CheckpointError`.
        """
        self.config = config or EngineConfig()
        self.family = family if family is not None else load_family(self.config)
        # Loops are compiled while loading, not within the first step.
        warm_up()
        self._cache = Cache(self.family, self.config)
        self.capacity = self._cache.capacity + Needs(
            decoder_slots=self.config.num_decoders, text_rows=self.config.max_text_rows
        )
        scheduling = SchedulerConfig(
            max_streams=self.config.max_streams,
            max_batch_tokens=self.config.max_batch_tokens,
            aging_steps=self.config.aging_steps,
        )
        self._scheduler = Scheduler(
            scheduling, block_manager=self._cache.block_manager, capacity=self.capacity
        )
        self._runner = Runner(self.family, config=self.config, cache=self._cache)
        self._texts = TextPool(self.family.text_keys_values)
        self._slots = DecoderSlots(
            self.family.codec, self.config.num_decoder_slots, self.config.spilled_decoders
        )
        self._streams: dict[str, Stream] = {}
        self._outside_work: list[tuple[Stream, OutsideWork]] = []
        self._unfinished: set[str] = set()
        self._mail: deque[Callable[[], Outputs]] = deque()
        self._mail_lock = threading.Lock()
        self._step_lock = threading.Lock()
        self._death: str | None = None

    def add_request(self, request: VideoRequest) -> tuple[str, ...]:
        """Queue a video; returns the words of its prompt that the model does not know.

        Raises `RequestError` for what does not suit the model, and `CapacityError` for a video
        that can never fit; then nothing was queued.
        """
        self._require_alive()
        stream, unknown_words = open_stream(
            request, family=self.family, page_size=self.config.page_size
        )
        codebooks = self._cache.codebook_needs(
            peak_tokens=stream.program.peak_tokens, num_sets=stream.program.codebook_sets
        )
        needs = stream.program.needs + codebooks + Needs(decoder_slots=int(stream.wants_video))
        self._scheduler.check_request(request.request_id, needs, priority=request.priority)
        with self._mail_lock:
            if request.request_id in self._unfinished:
                raise RequestError(f"request_id {request.request_id!r} is in use: give another one")
            self._unfinished.add(request.request_id)
            self._mail.append(lambda: self._take_in(stream, needs))
        return unknown_words

    def abort_request(self, request_id: str) -> bool:
        """End a request at the next step; False if it is not, or no longer, unfinished."""
        with self._mail_lock:
            if request_id not in self._unfinished:
                return False
            self._mail.append(lambda: self._abort(request_id))
        return True

    def update_request(
        self,
        request_id: str,
        *,
        prompt: str | None = None,
        prompt_embeds: Tensor | None = None,
    ) -> tuple[str, ...]:
        """Go on with a request under another prompt, from its next chunk on.

        Returns the words that the model does not know. Raises `RequestError` for a request that
        is not unfinished, or a text that does not suit the model.
        """
        self._require_alive()
        if (prompt is None) == (prompt_embeds is None):
            raise RequestError(f"request {request_id!r}: give either prompt or prompt_embeds")
        text, unknown_words = encode_text(
            self.family, request_id, prompt=prompt, prompt_embeds=prompt_embeds
        )
        with self._mail_lock:
            if request_id not in self._unfinished:
                raise RequestError(f"request {request_id!r} is not unfinished: add it again")
            self._mail.append(lambda: self._switch_text(request_id, text))
        return unknown_words

    def has_unfinished_requests(self) -> bool:
        """Whether there is a request whose last output `step` has not returned yet."""
        with self._mail_lock:
            return bool(self._unfinished)

    def step(self) -> Outputs:
        """Run one batched forward; returns the chunks and the ends that it brought.

        If the forward itself fails, every stream stays as it was, its pages of this step are
        freed, and the exception is raised: the next call tries again. Raises `EngineDeadError`
        once the device is lost.
        """
        self._require_alive()
        with self._step_lock:
            outputs = self._read_mail()
            for stream in self._streams.values():
                self._scheduler.offer(stream.request_id, stream.next_gang())
            plan = self._scheduler.schedule()
            try:
                for request_id in plan.admitted:
                    self._streams[request_id].admit(self._texts, self._slots)
                result = self._run(plan)
            except Exception as error:
                self._roll_back(plan, error)
                raise
            due, self._outside_work = self._outside_work, []
            outputs += self._complete(plan, result)
            outputs += self._do_outside_work(due)
        return outputs

    def generate(
        self,
        prompts: Sequence[str],
        *,
        num_frames: int,
        seed: int = 0,
        on_output: Callable[[VideoOutput], None] | None = None,
    ) -> list[GeneratedVideo]:
        """One video of `num_frames` pixel frames a prompt, all generated together.

        Prompt i has the seed `seed` + i. `on_output` sees every output as it comes. Raises
        `RequestError` for a bad request or while the engine has others, and `StreamError` if a
        video fails; the engine is then idle again.
        """
        return generate(self, prompts, num_frames=num_frames, seed=seed, on_output=on_output)

    def drop_unfinished(self) -> None:
        """Forget every unfinished request without another step; nothing is held afterwards."""
        with self._step_lock:
            self._read_mail()
            for request_id in tuple(self._streams):
                self._end(request_id, "abort")
            self._outside_work.clear()

    def stats(self) -> EngineStats:
        """The engine's figures now and at the step of peak page use."""
        scheduler = self._scheduler.stats()
        now, peak = self._cache.figures(), self._cache.peak
        return EngineStats(
            num_steps=scheduler.num_steps,
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            mean_streams_per_step=scheduler.mean_streams_per_step,
            pages_used=scheduler.num_pages_used,
            pages_total=self._cache.store.num_pages,
            kv_ratio_now=now.kv_ratio,
            kv_bytes_peak=peak.kv_bytes,
            kv_bytes_bf16=peak.bf16_bytes,
            kv_ratio=peak.kv_ratio,
            total_ratio=peak.total_ratio,
            codebook_bytes=peak.codebook_bytes,
            refinement_bytes=peak.refinement_bytes,
            workspace_bytes=peak.workspace_bytes,
            text_bytes=self._texts.num_bytes,
            decoder_bytes=self._slots.num_bytes,
            spilled_decoder_bytes=self._slots.num_spilled_bytes,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError, saying what is broken, unless everything is accounted for.

        Pages, block tables, reservations, texts and decoder slots are checked. Between steps
        only.
        """
        with self._step_lock:
            self._scheduler.check_integrity()
            running = [stream for stream in self._streams.values() if stream.is_admitted]
            assert len(running) == self._scheduler.num_running, "a stream's state is out of step"
            self._texts.check_integrity(sum(len(stream.text_entries) for stream in running))
            decoding = sum(stream.wants_video for stream in running)
            assert self._slots.num_used == decoding, "a decoder slot is lost"
            if not self._streams:
                assert self._cache.block_manager.num_used == 0, "pages in use while idle"

    def _read_mail(self) -> Outputs:
        outputs: Outputs = []
        while True:
            with self._mail_lock:
                if not self._mail:
                    return outputs
                act = self._mail.popleft()
            outputs += act()

    def _take_in(self, stream: Stream, needs: Needs) -> Outputs:
        self._streams[stream.request_id] = stream
        self._scheduler.add(
            stream.request_id,
            needs,
            num_branches=stream.program.num_branches,
            priority=stream.request.priority,
        )
        return []

    def _abort(self, request_id: str) -> Outputs:
        if request_id not in self._streams:
            return []
        return [self._end(request_id, "abort")]

    def _switch_text(self, request_id: str, text: TextRows) -> Outputs:
        if request_id in self._streams:
            try:
                self._streams[request_id].program.switch_text(text)
            except QvgError as error:
                return [self._end(request_id, "error", error=str(error))]
        return []

    def _run(self, plan: StepPlan) -> StepResult:
        for request_id in plan.request_ids:
            self._streams[request_id].sync_texts(self._texts)
        return self._runner.run(plan, self._streams) if plan.units else StepResult([], {}, {})

    def _roll_back(self, plan: StepPlan, error: Exception) -> None:
        self._scheduler.rollback(plan)
        for request_id in plan.admitted:
            self._streams[request_id].release(self._texts, self._slots)
        fault = isinstance(error, torch.AcceleratorError)
        if fault and not isinstance(error, torch.OutOfMemoryError):
            self._death = f"{type(error).__name__}: {error}"

    def _complete(self, plan: StepPlan, result: StepResult) -> Outputs:
        """Publish what went well, end what did not, and turn clean chunks into outputs."""
        advances, errors = self._advance(plan, result)
        self._cache.record_spans(
            [unit.commit for unit in plan.units if unit.commit and unit.request_id not in errors],
            result.figures,
        )
        self._scheduler.complete(plan, failed=errors.keys())
        self._cache.record_peak()
        for request_id, advance in advances.items():
            for eviction in advance.evictions:
                self._scheduler.evict(
                    request_id,
                    eviction.branch,
                    sink_tokens=eviction.sink_tokens,
                    window_start=eviction.window_start,
                )
        outputs: Outputs = []
        for request_id, advance in advances.items():
            outputs += self._collect(self._streams[request_id], advance)
        outputs += [
            self._end(request_id, "error", error=message) for request_id, message in errors.items()
        ]
        return outputs

    def _advance(
        self, plan: StepPlan, result: StepResult
    ) -> tuple[dict[str, Advance], dict[str, str]]:
        """What every stream of the plan emits, and why the others failed."""
        flows = result.flows
        advances: dict[str, Advance] = {}
        errors: dict[str, str] = {}
        if not flows:
            return advances, errors
        finite = finite_flags(flows)
        passes = by_request([scheduled.request_id for scheduled in plan.units])
        for request_id, indices in passes.items():
            if not all(finite[index] for index in indices):
                errors[request_id] = _explain_not_finite(self._streams[request_id])
                continue
            commits = [plan.units[index].commit for index in indices]
            refused = [
                result.failures[commit.commit_id]
                for commit in commits
                if commit is not None and commit.commit_id in result.failures
            ]
            if refused:
                errors[request_id] = f"request {request_id!r}: {refused[0]}"
                continue
            try:
                program = self._streams[request_id].program
                advances[request_id] = program.advance([flows[index] for index in indices])
            except Exception as error:
                errors[request_id] = _one_line(error)
        return advances, errors

    def _collect(self, stream: Stream, advance: Advance) -> Outputs:
        outputs: Outputs = []
        try:
            stream.records += advance.records
            for chunk in advance.chunks:
                outputs.append(stream.chunk_output(chunk, self._slots))
            if advance.work is not None:
                self._outside_work.append((stream, advance.work))
        except Exception as error:
            return [*outputs, self._end(stream.request_id, "error", error=_one_line(error))]
        if stream.program.finished:
            last = outputs.pop() if outputs else VideoOutput(request_id=stream.request_id)
            outputs.append(self._end(stream.request_id, "length", last=last))
        return outputs

    def _do_outside_work(self, due: list[tuple[Stream, OutsideWork]]) -> Outputs:
        """Do the work that streams have waited for since the step before."""
        outputs: Outputs = []
        for stream, work in due:
            if self._streams.get(stream.request_id) is not stream:
                continue
            try:
                work.receive(work.run())
            except Exception as error:
                outputs.append(self._end(stream.request_id, "error", error=_one_line(error)))
        return outputs

    def _end(
        self,
        request_id: str,
        reason: FinishReason,
        *,
        error: str | None = None,
        last: VideoOutput | None = None,
    ) -> VideoOutput:
        """Give back everything that the stream holds; its last output."""
        stream = self._streams.pop(request_id)
        trace = None
        if stream.request.trace and stream.is_admitted:
            branches = self._scheduler.branch_ids(request_id)
            tables = [self._cache.block_manager.read_table(branch) for branch in branches]
            trace = make_trace(stream, tables, family=self.family, store=self._cache.store)
        self._scheduler.finish(request_id)
        stream.release(self._texts, self._slots)
        with self._mail_lock:
            self._unfinished.discard(request_id)
        last = last or VideoOutput(request_id=request_id)
        return VideoOutput(
            request_id=request_id,
            chunk_index=last.chunk_index,
            frames=last.frames,
            latents=last.latents,
            finished=True,
            finish_reason=reason,
            error=error,
            trace=trace,
        )

    def _require_alive(self) -> None:
        if self._death is not None:
            raise EngineDeadError(f"the device was lost ({self._death}): make a new engine")


def _explain_not_finite(stream: Stream) -> str:
    return (
        f"request {stream.request_id!r}: the network's output has NaN or Inf: check the request's "
        "noise, embeddings and context, or compute in float32"
    )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
