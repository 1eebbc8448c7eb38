"""Cosines and sines of the rotary angles, factorised: a table an axis, never a row a token."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.gpu import runs_on_cpu


def default_pairs(head_dim: int) -> tuple[int, int, int]:
    """Wan's split of the `head_dim / 2` rotation pairs over time, height and width."""
    spatial = head_dim // 6
    return head_dim // 2 - 2 * spatial, spatial, spatial


class RopeTables:
    """Rotary tables of one model, for any position.

    Args:
        head_dim: channels of a head, even.
        base: the wavelengths' base; an axis with n pairs has frequencies `base ** (-i / n)`.
        pairs: rotation pairs of time, height, width, `head_dim / 2` in all; by default Wan's split.
        device: where the tables live.

    A table grows to the next power of two when a longer one is asked for. Angles are computed in
    fp64. On the CPU cosines and sines are kept in fp64 too, and rows are rotated in fp64 and
    rounded once, as the original implementations do; elsewhere they are kept in fp32.
    """

    def __init__(
        self,
        *,
        head_dim: int,
        base: float = 10000.0,
        pairs: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        time, height, width = default_pairs(head_dim) if pairs is None else pairs
        assert 2 * (time + height + width) == head_dim, (head_dim, pairs)
        self.head_dim = head_dim
        self.pairs = (time, height, width)
        self.base = base
        self.device = torch.device(device)
        self.dtype = torch.float64 if runs_on_cpu(self.device) else torch.float32
        self._tables = tuple(self._build(count, 1) for count in self.pairs)

    @property
    def num_bytes(self) -> int:
        """Bytes that the tables take now."""
        return sum(table.nbytes for table in self._tables)

    def axis(self, axis: int, length: int) -> Tensor:
        """Cosines and sines of positions 0 to at least `length - 1`: [>= length, 2, pairs].

        axis: 0 is time, 1 height, 2 width.
        """
        table = self._tables[axis]
        if length > table.shape[0]:
            table = self._build(self.pairs[axis], 1 << (length - 1).bit_length())
            # One assignment, so that another thread sees the old tables or the new ones.
            self._tables = (*self._tables[:axis], table, *self._tables[axis + 1 :])
        return table

    def rows(
        self, t: NDArray[np.int64], h: NDArray[np.int64], w: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of tokens at frame t, row h, column w: fp32 [tokens, head_dim / 2]."""
        parts = [
            self.axis(axis, int(positions.max(initial=0)) + 1)[
                torch.from_numpy(positions).to(self.device)
            ]
            for axis, positions in enumerate((t, h, w))
        ]
        cos, sin = torch.cat(parts, dim=-1).unbind(1)
        return cos, sin

    def _build(self, num_pairs: int, length: int) -> Tensor:
        exponents = torch.arange(num_pairs, dtype=torch.float64) / max(num_pairs, 1)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), self.base**-exponents)
        table = torch.stack((angles.cos(), angles.sin()), dim=1).to(self.dtype)
        if self.device.type == "cuda":
            # The host does not wait for a copy from pinned memory.
            table = table.pin_memory()
        return table.to(self.device, non_blocking=True)
