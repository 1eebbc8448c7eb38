"""The engine: requests in, chunks of many videos out, one batched forward a step."""

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from qvg_engine.admission import encode_text, open_stream
from qvg_engine.block_manager.warm_up import warm_up
from qvg_engine.cache import Cache
from qvg_engine.config import EngineConfig
from qvg_engine.decoder_slots import DecoderSlots
from qvg_engine.engine_stats import EngineStats, measure
from qvg_engine.errors import EngineDeadError, QvgError, RequestError, one_line
from qvg_engine.generate import GeneratedVideo, generate
from qvg_engine.launched_step import Emission, LaunchedStep
from qvg_engine.loading import load_family
from qvg_engine.mailbox import Mailbox
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.program import Advance, OutsideWork, TextRows
from qvg_engine.out_of_memory import explain_shortage, is_out_of_memory
from qvg_engine.output import FinishReason, PendingOutput, VideoOutput
from qvg_engine.request import VideoRequest
from qvg_engine.runner import Runner, StepResult
from qvg_engine.scheduler.config import SchedulerConfig
from qvg_engine.scheduler.core import Scheduler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.plan import StepPlan
from qvg_engine.stream import Stream
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
        self._launched: LaunchedStep | None = None
        self._outputs: Outputs = []
        # Whether a step is settled by the next one, while the device works on that.
        self._lags = self.config.torch_device.type == "cuda"
        self._mail = Mailbox()
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
        self._mail.add(request.request_id, lambda: self._take_in(stream, needs))
        return unknown_words

    def abort_request(self, request_id: str) -> bool:
        """End a request at the next step; False if it is not, or no longer, unfinished."""
        return self._mail.post(request_id, lambda: self._abort(request_id))

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
        if not self._mail.post(request_id, lambda: self._switch_text(request_id, text)):
            raise RequestError(f"request {request_id!r} is not unfinished: add it again")
        return unknown_words

    def has_unfinished_requests(self) -> bool:
        """Whether there is a request whose last output `step` has not returned yet."""
        return self._mail.has_unfinished or bool(self._outputs)

    def step(self) -> Outputs:
        """Run one batched forward; returns the chunks and the ends that are known by now.

        On a GPU the host does not wait for the forward: what a step brought is returned by the
        next one, once the device has said that all of it is finite. If the forward itself fails,
        every stream stays as it was, its pages of this step are freed, and the exception is
        raised: the next call tries again. If memory runs out, the stream that was added last of
        those in the step ends with an error instead. Raises `EngineDeadError` once the device is
        lost.
        """
        self._require_alive()
        with self._step_lock:
            # What an exception keeps from leaving, leaves with the next step.
            outputs = self._outputs
            outputs += [output for act in self._mail.read() for output in act()]
            outputs += self._settle_before_commits()
            for stream in self._streams.values():
                self._scheduler.offer(stream.request_id, stream.next_gang())
            plan = self._scheduler.schedule()
            try:
                for request_id in plan.admitted:
                    self._streams[request_id].admit(self._texts, self._slots)
                result = self._run(plan)
            except Exception as error:
                self._roll_back(plan, error)
                if not is_out_of_memory(error) or not plan.units:
                    raise
                self._outputs = []
                return [*outputs, self._shed(plan, error)]
            due, self._outside_work = self._outside_work, []
            launched = self._complete(plan, result)
            outputs += self._settle()
            self._launched = launched
            if launched is not None and (launched.errors or not self._lags):
                outputs += self._settle()
            outputs += self._do_outside_work(due)
            self._outputs = []
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
            for act in self._mail.read():
                act()
            self._launched, self._outputs = None, []
            for request_id in tuple(self._streams):
                self._end(request_id, "abort")
            self._outside_work.clear()

    def stats(self) -> EngineStats:
        """The engine's figures now and at the step of peak page use."""
        return measure(
            self._scheduler.stats(), cache=self._cache, texts=self._texts, slots=self._slots
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

    def _run(self, plan: StepPlan) -> StepResult | None:
        for request_id in plan.request_ids:
            self._streams[request_id].sync_texts(self._texts)
        return self._runner.run(plan, self._streams) if plan.units else None

    def _roll_back(self, plan: StepPlan, error: Exception) -> None:
        self._scheduler.rollback(plan)
        for request_id in plan.admitted:
            self._streams[request_id].release(self._texts, self._slots)
        fault = isinstance(error, torch.AcceleratorError)
        if fault and not is_out_of_memory(error):
            self._death = f"{type(error).__name__}: {error}"

    def _shed(self, plan: StepPlan, error: Exception) -> VideoOutput:
        """End the youngest stream of a step that memory did not suffice for."""
        youngest = [name for name in self._streams if name in plan.request_ids][-1]
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        message = explain_shortage(youngest, error, num_streams=len(plan.request_ids))
        return self._end(youngest, "error", error=message)

    def _complete(self, plan: StepPlan, result: StepResult | None) -> LaunchedStep | None:
        """Go on as if all were well, where the verdict is not in; publish, evict, begin outputs."""
        if result is None:
            self._scheduler.complete(plan)
            return None
        launched = LaunchedStep(plan, result, self._streams)
        known = launched.errors if self._lags else launched.verdict().errors
        advances = self._advance(launched, known)
        self._scheduler.complete(plan, failed=known.keys() | launched.errors.keys())
        self._cache.record_peak()
        for request_id, advance in advances.items():
            for eviction in advance.evictions:
                self._scheduler.evict(
                    request_id,
                    eviction.branch,
                    sink_tokens=eviction.sink_tokens,
                    window_start=eviction.window_start,
                )
        for request_id, advance in advances.items():
            self._emit(launched, request_id, advance)
        return launched

    def _advance(self, launched: LaunchedStep, failed: Mapping[str, str]) -> dict[str, Advance]:
        """What every stream emits that has not failed; a program's own failure is noted."""
        advances: dict[str, Advance] = {}
        for request_id, stream in launched.streams.items():
            if request_id in failed:
                continue
            try:
                advances[request_id] = stream.program.advance(launched.flows_of(request_id))
            except Exception as error:
                launched.errors[request_id] = one_line(error)
        return advances

    def _emit(self, launched: LaunchedStep, request_id: str, advance: Advance) -> None:
        """Begin the outputs of one stream, which leave with the verdict."""
        stream = self._streams[request_id]
        outputs: list[PendingOutput] = []
        try:
            stream.records += advance.records
            for chunk in advance.chunks:
                outputs.append(stream.begin_output(chunk, self._slots))
        except Exception as error:
            launched.errors[request_id] = one_line(error)
        if advance.work is not None and request_id not in launched.errors:
            self._outside_work.append((stream, advance.work))
        launched.emissions[request_id] = Emission(tuple(outputs), stream.program.finished)

    def _settle_before_commits(self) -> Outputs:
        """Settle now if a stream that has just committed commits again.

        What its codebooks do depends on the figures of the span before, and must not depend on
        what else is in the batch.
        """
        if self._launched is None:
            return []
        for request_id, _ in self._launched.commits:
            if self._launched.is_alive(request_id, self._streams):
                gang = self._streams[request_id].next_gang()
                if gang is not None and any(unit.commit for unit in gang):
                    return self._settle()
        return []

    def _settle(self) -> Outputs:
        """Let the launched step's outputs leave, and end the streams that failed in it."""
        launched, self._launched = self._launched, None
        if launched is None:
            return []
        verdict = launched.verdict()
        alive = [name for name in launched.streams if launched.is_alive(name, self._streams)]
        self._cache.record_spans(
            [commit for request_id, commit in launched.commits if request_id in alive],
            verdict.figures,
        )
        outputs: Outputs = []
        errors = verdict.errors | launched.errors
        for request_id in alive:
            # What the device says of a step's numbers concerns all that came of them.
            if request_id in launched.emissions and request_id not in verdict.errors:
                emission = launched.emissions[request_id]
                chunks = [output.finish() for output in emission.outputs]
                if emission.finished and request_id not in errors:
                    last = chunks.pop() if chunks else VideoOutput(request_id=request_id)
                    chunks.append(self._end(request_id, "length", last=last))
                outputs += chunks
        outputs += [
            self._end(request_id, "error", error=errors[request_id])
            for request_id in alive
            if request_id in errors
        ]
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
                outputs.append(self._end(stream.request_id, "error", error=one_line(error)))
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
        self._mail.end(request_id)
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
