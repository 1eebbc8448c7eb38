"""The passes of a step as one batch: how many rows, frames and timesteps each of them has."""

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.kernels.device_table import send
from qvg_engine.models.program import PassInputs
from qvg_engine.models.wan.rows import PassSplits


class RaggedBatch(msgspec.Struct, frozen=True):
    """`passes` in order, and the tokens and latent frames of each."""

    passes: Sequence[PassInputs]
    num_tokens: tuple[int, ...]
    num_frames: tuple[int, ...]

    @classmethod
    def of(cls, passes: Sequence[PassInputs], rows: Sequence[Tensor]) -> "RaggedBatch":
        """The batch of passes whose tokens are the `rows` [tokens, any width]."""
        num_tokens = tuple(len(part) for part in rows)
        return cls(passes, num_tokens, tuple(len(item.latents) for item in passes))

    @property
    def tokens_per_frame(self) -> list[int]:
        """Tokens of every latent frame."""
        counts = zip(self.num_tokens, self.num_frames, strict=True)
        return [tokens // frames for tokens, frames in counts for _ in range(frames)]

    def timesteps(self, device: torch.device) -> Tensor:
        """Timesteps of every latent frame, fp64 [F]."""
        numbers = [t for item in self.passes for t in item.timesteps]
        return send(torch.tensor(numbers, dtype=torch.float64), device)

    def splits(self, *, batch_invariant: bool) -> PassSplits | None:
        """Where linear layers are split, if they are."""
        return PassSplits(self.num_tokens, self.num_frames) if batch_invariant else None
