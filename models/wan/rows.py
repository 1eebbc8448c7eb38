"""How the rows of a ragged batch belong to latent frames and to passes."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.device_table import to_device


class FrameRows:
    """Applies one vector per latent frame to the tokens of that frame."""

    def __init__(self, tokens_per_frame: Sequence[int], *, device: torch.device) -> None:
        counts = tuple(tokens_per_frame)
        self._uniform = counts[0] if len(set(counts)) == 1 else None
        self._frame_of_token: Tensor | None = None
        if self._uniform is None:
            frames = np.repeat(np.arange(len(counts)), counts)
            self._frame_of_token = to_device(frames, device)

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """x * (1 + scale) + shift; x is [tokens, dim], shift and scale [frames, dim]."""
        grouped = self._group(x)
        return torch.addcmul(self._spread(shift), grouped, 1 + self._spread(scale)).view_as(x)

    def add_gated(self, x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
        """x + update * gate; x and update are [tokens, dim], gate [frames, dim]."""
        grouped = torch.addcmul(self._group(x), self._group(update), self._spread(gate))
        return grouped.view_as(x)

    def _group(self, x: Tensor) -> Tensor:
        return x if self._uniform is None else x.unflatten(0, (-1, self._uniform))

    def _spread(self, per_frame: Tensor) -> Tensor:
        if self._frame_of_token is None:
            return per_frame[:, None]
        return per_frame[self._frame_of_token]


class PassSplits(msgspec.Struct, frozen=True):
    """Where one pass ends and the next begins, in tokens and in latent frames."""

    tokens: tuple[int, ...]
    frames: tuple[int, ...]

    def frames_view(self) -> "PassSplits":
        """The same passes for tensors with one row per latent frame."""
        return PassSplits(self.frames, self.frames)


def apply_split(module: Callable[[Tensor], Tensor], x: Tensor, splits: PassSplits | None) -> Tensor:
    """module(x), or the module on the rows of each pass alone where `splits` is given."""
    if splits is None or len(splits.tokens) == 1:
        return module(x)
    return torch.cat([module(part) for part in x.split(splits.tokens)])
