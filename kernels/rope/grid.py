"""Where the tokens of a video lie: token number to frame, row and column."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.rope.tables import RopeTables


@dataclass(frozen=True, slots=True)
class RopeGrid:
    """Rotary tables with the size of a latent frame in tokens.

    Token n of a branch is at frame `n // (height * width)`; its rest counts rows, then columns.
    """

    tables: RopeTables
    height: int
    width: int

    def __post_init__(self) -> None:
        assert min(self.height, self.width) > 0, (self.height, self.width)

    def coordinates(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Frame, row and column of tokens with these numbers (>= 0)."""
        frame, rest = np.divmod(positions, self.height * self.width)
        row, column = np.divmod(rest, self.width)
        return frame, row, column

    def axes(self, largest_position: int) -> tuple[Tensor, Tensor, Tensor]:
        """The tables of time, height and width for tokens up to this number, see `axis`."""
        num_frames = largest_position // (self.height * self.width) + 1
        tables = self.tables
        return tables.axis(0, num_frames), tables.axis(1, self.height), tables.axis(2, self.width)

    def rows(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of tokens with these numbers: two [tokens, head_dim / 2]."""
        assert positions.min(initial=0) >= 0, positions.min()
        return self.tables.rows(*self.coordinates(positions))
