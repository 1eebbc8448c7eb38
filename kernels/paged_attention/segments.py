"""What attention attends to: runs of tokens in pages, or in dense tensors."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.page_runs import PageColumns, PageRuns
from qvg_engine.kernels.paged_attention.pages import LayerPages


class PagedSegment:
    """Tokens in the pages of one layer, in the order of `columns`; any number, also none."""

    __slots__ = ("num_tokens", "pages", "runs")

    def __init__(self, pages: LayerPages, columns: PageColumns) -> None:
        self.pages = pages
        self.runs = PageRuns.from_columns(columns)
        self.num_tokens = self.runs.num_tokens

    def cut(self, start: int, stop: int) -> "PagedSegment":
        """The tokens [start, stop) of this segment."""
        return PagedSegment(self.pages, self.runs.cut(start, stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSegment:
    """Tokens in dense tensors.

    Args:
        keys, values: [tokens, heads, head_dim].
        positions: the tokens' numbers for the read transform, or None to take K and V as they are.
        log_weights: [tokens], finite, or None: token i counts exp(log_weights[i]) times. N equal
            rows are exactly one row with log-weight log(N).
    """

    keys: Tensor
    values: Tensor
    positions: NDArray[np.int64] | None = None
    log_weights: Tensor | None = None

    def __post_init__(self) -> None:
        num_tokens = (self.num_tokens,)
        assert self.values.shape == self.keys.shape, (self.keys.shape, self.values.shape)
        assert self.positions is None or self.positions.shape == num_tokens, self.positions
        assert self.log_weights is None or self.log_weights.shape == num_tokens, self.log_weights

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[0]

    def cut(self, start: int, stop: int) -> "DenseSegment":
        """The tokens [start, stop) of this segment."""
        return replace(
            self,
            keys=self.keys[start:stop],
            values=self.values[start:stop],
            positions=None if self.positions is None else self.positions[start:stop],
            log_weights=None if self.log_weights is None else self.log_weights[start:stop],
        )


Segment = PagedSegment | DenseSegment
