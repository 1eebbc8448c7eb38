"""The pass program of the causal Wan family.

Context that came with the request is committed first, piece by piece. Then each chunk takes its
denoising passes and one commit pass of its clean latents. A switch of the text takes effect
between chunks, as LongLive does it: the clean latents of the window, but for the sink, run again
in one pass under the new text, and what the next chunk will see of them takes the place of what
was computed under the old one. The sink stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvg_engine.block_manager.page_count import peak_pages
from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.paged_attention import ReadTransform
from qvg_engine.models.program import (
    Advance,
    CleanChunk,
    Eviction,
    PassInputs,
    PassRecord,
    StreamInputs,
    TextRows,
)
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.sampler import FewStepSampler
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit


class WanProgram:
    """Denoise, commit, next chunk: one branch, noise and latents on the network's device."""

    num_branches = 1

    def __init__(
        self,
        inputs: StreamInputs,
        *,
        settings: RolloutSettings,
        sampler: FewStepSampler,
        transform: ReadTransform,
        tokens_per_frame: int,
        page_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._inputs = inputs
        self._settings = settings
        self._sampler = sampler
        self._transform = transform
        self._tokens_per_frame = tokens_per_frame
        self._device = device
        self._dtype = dtype
        self._text = inputs.text
        self._next_text: TextRows | None = None
        self._context = self._split_context()
        self._num_context_pieces = len(self._context)
        self._clean: list[Tensor] = []
        self._next_frame = 0
        self._chunk = 0
        self._step: int | None = 0
        self._x: Tensor | None = None
        self._peak_tokens = self._peak_of(self._chunks(), page_size=1)
        # A later text may have more rows, so the whole length is reserved.
        self._needs = Needs(pages=self._peak_pages(page_size), text_rows=inputs.text.padded_len)

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
        return -(-self._inputs.num_frames // self._settings.frames_per_chunk)

    @property
    def finished(self) -> bool:
        return self._chunk == self.num_chunks

    def texts(self) -> tuple[TextRows, ...]:
        if self._is_recommit:
            assert self._next_text is not None
            return (self._next_text,)
        return (self._text,)

    def switch_text(self, text: TextRows) -> None:
        if self._x is None and self._visible_start == self._next_frame:
            self._text = text
        else:
            self._next_text = text

    def next_gang(self) -> Gang | None:
        if self.finished:
            return None
        if self._is_recommit:
            return (self._recommit_unit(),)
        if self._context:
            return (self._commit_unit(len(self._context[0])),)
        if self._step is None:
            return (self._commit_unit(self._chunk_frames),)
        num_tokens = self._chunk_frames * self._tokens_per_frame
        return (PassUnit(branch=0, kind=PassKind.DENOISE, num_tokens=num_tokens),)

    def pass_inputs(self) -> Sequence[PassInputs]:
        if self._is_recommit:
            first_frame = self._next_frame - len(self._clean)
            return (self._commit_inputs(self._recommitted(), first_frame, reads_all=False),)
        if self._context:
            return (self._commit_inputs(self._context[0], self._next_frame),)
        if self._step is None:
            return (self._commit_inputs(self._current(), self._next_frame),)
        timesteps = (self._sampler.timesteps[self._step],) * self._chunk_frames
        first_token = self._next_frame * self._tokens_per_frame
        return (
            PassInputs(
                latents=self._current(),
                timesteps=timesteps,
                first_token=first_token,
                transform=self._transform,
                packed_positions=self._packs_positions,
            ),
        )

    def advance(self, flows: Sequence[Tensor]) -> Advance:
        (flow,) = flows
        if self._is_recommit:
            records = self._record(self._recommitted(), flow, self._chunk)
            assert self._next_text is not None
            self._text, self._next_text = self._next_text, None
            return Advance(records=records)
        if self._context:
            piece = self._context.pop(0)
            index = -1 - len(self._context)
            records = self._record(piece, flow, index)
            return Advance(records=records, evictions=self._append_clean(piece))
        if self._step is None:
            return self._advance_commit(flow)
        return self._advance_denoise(flow, self._step)

    def _advance_denoise(self, flow: Tensor, step: int) -> Advance:
        x = self._current()
        x0 = self._sampler.predict_x0(x, flow, step)
        records: tuple[PassRecord, ...] = ()
        if self._inputs.record_passes:
            timestep = self._sampler.timesteps[step]
            records = (_pass_record(self._chunk, step, timestep, x0, flow),)
        if step + 1 < self._sampler.num_steps:
            noise = self._inputs.noise.renoise(self._chunk, step, self._shape)
            self._x = self._sampler.renoise(x0, send(noise, x.device, x.dtype), step + 1)
            self._step = step + 1
            return Advance(records=records)
        self._x, self._step = x0, None
        chunks = (CleanChunk(self._chunk, x0, self._take_decode_after()),)
        if self._chunk + 1 == self.num_chunks and not self._inputs.record_passes:
            self._chunk += 1
        return Advance(chunks=chunks, records=records)

    def _take_decode_after(self) -> Tensor | None:
        """What the decoder starts anew with before the chunk that is done."""
        return None

    def _advance_commit(self, flow: Tensor) -> Advance:
        x0 = self._current()
        records = self._record(x0, flow, self._chunk)
        self._chunk += 1
        self._x, self._step = None, 0
        return Advance(records=records, evictions=self._append_clean(x0))

    def _current(self) -> Tensor:
        if self._x is None:
            noise = self._inputs.noise.start(self._chunk, self._shape)
            self._x = send(noise, self._device, self._dtype)
        return self._x

    @property
    def _chunk_frames(self) -> int:
        done = self._chunk * self._settings.frames_per_chunk
        return min(self._settings.frames_per_chunk, self._inputs.num_frames - done)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return (self._chunk_frames, *self._inputs.latent_shape)

    def _split_context(self) -> list[Tensor]:
        context = self._inputs.context_latents
        if context is None or not len(context):
            return []
        context = send(context, self._device, self._dtype)
        # A remainder goes first, as the single image frame of image-to-video does.
        whole = self._settings.frames_per_chunk
        remainder = len(context) % whole
        pieces = list(context[remainder:].split(whole)) if len(context) > remainder else []
        return [context[:remainder], *pieces] if remainder else pieces

    def _append_clean(self, latents: Tensor) -> tuple[Eviction, ...]:
        self._clean.extend(latents.unbind(0))
        self._next_frame += len(latents)
        start = self._visible_start
        del self._clean[: max(0, len(self._clean) - self._most_recommitted)]
        if self._next_text is not None and start == self._next_frame:
            # Nothing that the next chunk reads was computed under the old text, but the sink.
            self._text, self._next_text = self._next_text, None
        tokens = self._tokens_per_frame
        return (Eviction(0, self._settings.sink_frames * tokens, start * tokens),)

    @property
    def _visible_start(self) -> int:
        """First frame after the sink that the next chunk sees; `next_frame` if there is none."""
        start = max(self._settings.sink_frames, self._settings.window_start(self._next_frame))
        return min(start, self._next_frame)

    @property
    def _most_recommitted(self) -> int:
        """Latest frames that run again under a new text: those of the window after the sink."""
        frames = self._next_frame - self._settings.sink_frames
        if self._settings.window_frames is not None:
            frames = min(frames, self._settings.window_frames - self._settings.sink_frames)
        return max(0, frames)

    @property
    def _is_recommit(self) -> bool:
        between_chunks = self._step == 0 and self._x is None and not self._context
        return self._next_text is not None and between_chunks

    @property
    def _packs_positions(self) -> bool:
        return self._settings.positions == "window"

    def _recommitted(self) -> Tensor:
        return torch.stack(self._clean)

    def _recommit_unit(self) -> PassUnit:
        tokens = self._tokens_per_frame
        intent = CommitIntent(
            branches=(0,),
            num_tokens=(self._next_frame - self._visible_start) * tokens,
            at_token=self._visible_start * tokens,
            free_first=True,
        )
        num_tokens = len(self._clean) * tokens
        return PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent)

    def _commit_unit(self, frames: int) -> PassUnit:
        num_tokens = frames * self._tokens_per_frame
        intent = CommitIntent(branches=(0,), num_tokens=num_tokens)
        return PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent)

    def _commit_inputs(
        self, latents: Tensor, first_frame: int, *, reads_all: bool = True
    ) -> PassInputs:
        first_token = first_frame * self._tokens_per_frame
        return PassInputs(
            latents=latents,
            timesteps=(self._sampler.commit_timestep,) * len(latents),
            first_token=first_token,
            transform=self._transform,
            read_upto=None if reads_all else first_token,
            packed_positions=self._packs_positions,
        )

    def _record(self, latents: Tensor, flow: Tensor, chunk: int) -> tuple[PassRecord, ...]:
        if not self._inputs.record_passes:
            return ()
        x0 = self._sampler.predict_x0(latents, flow, None)
        return (_pass_record(chunk, None, self._sampler.commit_timestep, x0, flow),)

    def _peak_pages(self, page_size: int) -> int:
        """Pages at the peak, whether or not the text is switched on the way."""
        settings = self._settings
        chunks, generated = self._chunks(), self._generated_chunks()
        plain = self._peak_of(chunks, page_size)
        recent = sum(chunks) - settings.sink_frames
        if settings.window_frames is None or recent <= 0:
            return plain
        recent = min(recent, settings.window_frames - settings.sink_frames)
        switched = [f for f in (settings.sink_frames, recent - settings.frames_per_chunk) if f > 0]
        return max(plain, self._peak_of(switched + generated, page_size))

    def _chunks(self) -> list[int]:
        """Latent frames of every piece of context and every chunk."""
        return [len(piece) for piece in self._context] + self._generated_chunks()

    def _generated_chunks(self) -> list[int]:
        size = self._settings.frames_per_chunk
        whole, rest = divmod(self._inputs.num_frames, size)
        return [size] * whole + ([rest] if rest else [])

    def _peak_of(self, chunk_frames: Sequence[int], page_size: int) -> int:
        tokens = self._tokens_per_frame
        window = self._settings.window_frames
        return peak_pages(
            [frames * tokens for frames in chunk_frames],
            page_size=page_size,
            window_tokens=None if window is None else window * tokens,
            sink_tokens=self._settings.sink_frames * tokens,
            commit_last=self._inputs.record_passes,
        )


def _pass_record(
    chunk: int, step: int | None, timestep: float, x0: Tensor, flow: Tensor
) -> PassRecord:
    return PassRecord(
        chunk_index=chunk, branch=0, step=step, timestep=timestep, x0=x0.cpu(), flow=flow.cpu()
    )
