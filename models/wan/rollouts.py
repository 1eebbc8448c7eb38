"""Long videos as CausVid makes them: rollouts one after the other, with an overlap.

A rollout is as long as the network was trained for. The next one starts at position 0 from the
overlap's latents. Their first must stand for one pixel frame, as a video's first latent does, so
the frame of that time is decoded and encoded again; the others stay as they are.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from qvg_engine.errors import RequestError
from qvg_engine.kernels.device_table import send
from qvg_engine.models.family import VideoCodec
from qvg_engine.models.program import Advance, OutsideWork, PassInputs, StreamInputs, TextRows
from qvg_engine.models.wan.program import WanProgram
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit


class RolloutProgram(WanProgram):
    """`WanProgram`, forgetting all but an overlap when a rollout is complete."""

    def __init__(self, inputs: StreamInputs, *, codec: VideoCodec | None, **options: Any) -> None:
        """Raises `RequestError` for several rollouts without a VAE, or a context too long."""
        settings = options["settings"]
        self._codec = codec
        self._rollout_frames: int = settings.rollout_frames
        self._overlap_frames: int = settings.overlap_frames
        # Latents of this rollout so far, and those that the next one starts from.
        self._rollout: list[Tensor] = []
        self._start: Tensor | None = None
        self._decode_after: Tensor | None = None
        self._waits = False
        super().__init__(inputs, **options)
        context = sum(len(piece) for piece in self._context)
        if context + settings.frames_per_chunk > self._rollout_frames:
            raise RequestError(
                f"context_latents has {context} latent frames: give at most "
                f"{self._rollout_frames - settings.frames_per_chunk}, or set rollout_frames"
            )
        if codec is None and context + inputs.num_frames > self._rollout_frames:
            raise RequestError(
                f"a video of more than {self._rollout_frames} latent frames is decoded and encoded "
                "on its way, and there is no VAE here: ask for a shorter one, or set rollout_frames"
            )
        self._rollout = [frame for piece in self._context for frame in piece]

    def switch_text(self, text: TextRows) -> None:
        if self._waits or self._start is not None:
            self._text = text
        else:
            super().switch_text(text)

    def next_gang(self) -> Gang | None:
        if self._waits:
            return None
        if self._start is None:
            return super().next_gang()
        num_tokens = len(self._start) * self._tokens_per_frame
        intent = CommitIntent(branches=(0,), num_tokens=num_tokens, at_token=0, free_first=True)
        return (PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent),)

    def pass_inputs(self) -> Sequence[PassInputs]:
        if self._start is None:
            return super().pass_inputs()
        return (self._commit_inputs(self._start, 0, reads_all=False),)

    def advance(self, flows: Sequence[Tensor]) -> Advance:
        start = self._start
        if start is None:
            return super().advance(flows)
        records = self._record(start, flows[0], self._chunk)
        self._start, self._decode_after = None, start
        self._next_frame, self._clean = 0, []
        self._rollout = list(start)
        return Advance(records=records, evictions=self._append_clean(start))

    def _advance_denoise(self, flow: Tensor, step: int) -> Advance:
        advance = super()._advance_denoise(flow, step)
        if not advance.chunks:
            return advance
        self._rollout += advance.chunks[0].latents.unbind(0)
        frames_after = len(self._rollout) + self._settings.frames_per_chunk
        if frames_after <= self._rollout_frames or self._chunk + 1 >= self.num_chunks:
            return advance
        # What the last chunk would commit is forgotten at once.
        self._chunk += 1
        self._x, self._step, self._waits = None, 0, True
        if self._next_text is not None:
            self._text, self._next_text = self._next_text, None
        latents = torch.stack(self._rollout)
        work = OutsideWork(run=lambda: self._encode_again(latents), receive=self._receive)
        return msgspec.structs.replace(advance, work=work)

    def _encode_again(self, latents: Tensor) -> Tensor:
        """The overlap's latents, the first of them of its last pixel frame."""
        assert self._codec is not None, "checked when the program was opened"
        before = latents[: len(latents) - self._overlap_frames + 1]
        frames, _ = self._codec.decode_chunk(before, None)
        still = frames[-1:].cpu().numpy().repeat(self._codec.pixel_frames(1), axis=0)
        first = send(self._codec.encode(still), latents.device, latents.dtype)
        return torch.cat([first, latents[len(before) :]])

    def _receive(self, start: Tensor) -> None:
        self._start, self._waits = start, False

    def _take_decode_after(self) -> Tensor | None:
        taken, self._decode_after = self._decode_after, None
        return taken

    def _chunks(self) -> list[int]:
        """The pieces of the longest rollout."""
        size = self._settings.frames_per_chunk
        pieces = [len(piece) for piece in self._context]
        generated = self._generated_chunks()
        room = (self._rollout_frames - sum(pieces)) // size
        later = [self._overlap_frames] + [size] * (
            (self._rollout_frames - self._overlap_frames) // size
        )
        first = pieces + generated[:room]
        return first if len(generated) <= room else max(first, later, key=sum)
