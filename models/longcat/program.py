"""The pass program of LongCat-Video.

A video is a list of segments. A segment that continues a clip starts with one commit pass of the
clip's last latent frames, at t = 0 and without text; both branches of guidance read what it wrote.
Then come its denoising steps, the negative branch and the prompted one in the same step of the
engine. Positions count from the segment's first frame, its condition included.
"""

from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.block_manager.page_count import pages_for
from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.paged_attention import ReadTransform
from qvg_engine.models.longcat.schedule import Schedule, cfg_zero_scale, guide
from qvg_engine.models.longcat.segments import Segment
from qvg_engine.models.program import (
    Advance,
    CleanChunk,
    OutsideWork,
    PassInputs,
    PassRecord,
    StreamInputs,
    TextRows,
)
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit

Reencode = Callable[[Tensor, int], Tensor]
"""From a segment's latents [F, C, h, w], its condition first, to those of its last pixel frames
[n, C, h, w], encoded anew; n is the second argument."""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """How one request is generated: its segments, schedules, guidance, and what it reads.

    `schedules` has one for each segment. `negative` is None without guidance. `reencode` None takes
    the last latents of a segment as they are.
    """

    segments: tuple[Segment, ...]
    schedules: tuple[Schedule, ...]
    guidance: float
    prompt: TextRows
    negative: TextRows | None
    commit_timestep: float
    reencode: Reencode | None


class LongCatProgram:
    """Commit the condition, denoise, next segment; latents in fp32 on the network's device."""

    def __init__(
        self,
        inputs: StreamInputs,
        rollout: Rollout,
        *,
        transform: ReadTransform,
        tokens_per_frame: int,
        page_size: int,
        device: torch.device,
        dtype: torch.dtype,
        attended: Callable[[TextRows], TextRows],
    ) -> None:
        """`attended` turns a later text into the rows that are attended to."""
        self._inputs = inputs
        self._rollout = rollout
        self._transform = transform
        self._tokens_per_frame = tokens_per_frame
        self._device = device
        self._dtype = dtype
        self._attended = attended
        self._prompt = rollout.prompt
        self._next_prompt: TextRows | None = None
        self._segment = 0
        self._step = 0
        self._waits = False
        self._x: Tensor | None = None
        self._condition = self._given_context()
        # Whether the condition is in the cache, and whether one of an earlier segment is.
        self._is_committed, self._has_cache = False, False
        most_tokens = max(item.condition_frames for item in rollout.segments) * tokens_per_frame
        self._peak_tokens = most_tokens
        # A later text may have more rows, so the whole length is reserved.
        rows = max(inputs.text.padded_len, *(text.padded_len for text in self.texts()))
        self._needs = Needs(
            pages=pages_for(most_tokens, page_size), text_rows=rows * self.num_branches
        )

    @property
    def num_branches(self) -> int:
        return 1 if self._rollout.negative is None else 2

    @property
    def peak_tokens(self) -> int:
        return self._peak_tokens

    @property
    def codebook_sets(self) -> int:
        return 1

    @property
    def needs(self) -> Needs:
        return self._needs

    @property
    def transform(self) -> ReadTransform:
        return self._transform

    @property
    def num_chunks(self) -> int:
        return len(self._rollout.segments)

    @property
    def finished(self) -> bool:
        return self._segment == self.num_chunks

    def texts(self) -> tuple[TextRows, ...]:
        negative = self._rollout.negative
        return (self._prompt,) if negative is None else (negative, self._prompt)

    def switch_text(self, text: TextRows) -> None:
        """The next segment is made under the new text: what is cached has seen none."""
        self._next_prompt = self._attended(text)
        if self._x is None:
            self._take_next_prompt()

    def next_gang(self) -> Gang | None:
        if self.finished or self._waits:
            return None
        if self._commits:
            assert self._condition is not None
            num_tokens = len(self._condition) * self._tokens_per_frame
            intent = CommitIntent(
                branches=tuple(range(self.num_branches)),
                num_tokens=num_tokens,
                at_token=0 if self._has_cache else None,
                free_first=self._has_cache,
            )
            return (PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent),)
        num_tokens = self._current.new_frames * self._tokens_per_frame
        return tuple(
            PassUnit(branch=branch, kind=PassKind.DENOISE, num_tokens=num_tokens)
            for branch in range(self.num_branches)
        )

    def pass_inputs(self) -> Sequence[PassInputs]:
        if self._commits:
            assert self._condition is not None
            return (
                PassInputs(
                    latents=self._condition,
                    timesteps=(self._rollout.commit_timestep,) * len(self._condition),
                    first_token=0,
                    transform=self._transform,
                    read_upto=0,
                    reads_text=False,
                ),
            )
        item = PassInputs(
            latents=self._noisy(),
            timesteps=(self._schedule.timesteps[self._step],) * self._current.new_frames,
            first_token=self._current.condition_frames * self._tokens_per_frame,
            transform=self._transform,
        )
        return (item,) * self.num_branches

    def advance(self, flows: Sequence[Tensor]) -> Advance:
        if self._commits:
            return self._advance_commit(flows)
        x, step, schedule = self._noisy(), self._step, self._schedule
        flow, scale = flows[-1].float(), None
        if self._rollout.negative is not None:
            negative, prompted = (flow.float() for flow in flows)
            scale = cfg_zero_scale(prompted, negative)
            flow = guide(prompted, negative, guidance=self._rollout.guidance, scale=scale)
        records = self._records(x, flows, step, guided=flow, scale=scale)
        self._x = schedule.advance(x, flow, step)
        self._step += 1
        if self._step < schedule.num_steps:
            return Advance(records=records)
        return self._end_segment(self._x, records)

    def _advance_commit(self, flows: Sequence[Tensor]) -> Advance:
        assert self._condition is not None
        self._is_committed, self._has_cache = True, True
        return Advance(records=self._records(self._condition, flows, None))

    def _end_segment(self, clean: Tensor, records: tuple[PassRecord, ...]) -> Advance:
        chunk = CleanChunk(self._segment, clean, decode_after=self._condition)
        whole = clean if self._condition is None else torch.cat([self._condition, clean])
        self._segment += 1
        work = None
        if not self.finished:
            work = self._continue_from(whole, self._current.condition_frames)
        return Advance(chunks=(chunk,), records=records, work=work)

    def _continue_from(self, latents: Tensor, wanted: int) -> OutsideWork | None:
        """Begin the next segment now, or once the latents were decoded and encoded."""
        reencode = self._rollout.reencode
        if reencode is None:
            self._begin_segment(latents[-wanted:])
            return None
        self._waits = True
        return OutsideWork(run=lambda: reencode(latents, wanted), receive=self._begin_segment)

    def _begin_segment(self, condition: Tensor) -> None:
        assert len(condition) == self._current.condition_frames, condition.shape
        self._condition = send(condition, self._device, torch.float32)
        self._is_committed, self._waits = False, False
        self._x, self._step = None, 0
        self._take_next_prompt()

    def _take_next_prompt(self) -> None:
        if self._next_prompt is not None:
            self._prompt, self._next_prompt = self._next_prompt, None

    @property
    def _commits(self) -> bool:
        return self._condition is not None and not self._is_committed

    @property
    def _current(self) -> Segment:
        return self._rollout.segments[self._segment]

    @property
    def _schedule(self) -> Schedule:
        return self._rollout.schedules[self._segment]

    def _noisy(self) -> Tensor:
        if self._x is None:
            segment = self._current
            frames = range(segment.first_frame, segment.first_frame + segment.new_frames)
            shape = (1, *self._inputs.latent_shape)
            noise = torch.cat([self._inputs.noise.start(frame, shape) for frame in frames])
            if segment.continues:
                # As published: noise is drawn in fp32 for text alone, else in the network's dtype.
                noise = noise.to(self._dtype)
            self._x = send(noise, self._device, torch.float32)
        return self._x

    def _given_context(self) -> Tensor | None:
        context = self._inputs.context_latents
        if context is None or not len(context):
            return None
        return send(context, self._device, torch.float32)

    def _records(
        self,
        latents: Tensor,
        flows: Sequence[Tensor],
        step: int | None,
        *,
        guided: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> tuple[PassRecord, ...]:
        if not self._inputs.record_passes:
            return ()
        schedule = self._schedule
        timestep = self._rollout.commit_timestep if step is None else schedule.timesteps[step]
        # The given context is a piece of no segment.
        chunk = -1 if step is None and not self._segment else self._segment
        return tuple(
            PassRecord(
                chunk_index=chunk,
                branch=branch,
                step=step,
                timestep=timestep,
                x0=schedule.predict_x0(latents, flow, step).cpu(),
                flow=flow.cpu(),
                guided_flow=None if scale is None or guided is None else guided.cpu(),
                cfg_zero_scale=None if scale is None else float(scale),
            )
            for branch, flow in enumerate(flows)
        )
