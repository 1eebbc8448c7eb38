"""What attention attends to: runs of tokens in pages, or in dense tensors."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.paged_attention.pages import LayerPages


class PageColumns(Protocol):
    """A block table's entries: four integer columns of equal length.

    Entry i is slots [begin[i], end[i]) of page page_id[i]; the token in slot s has the number
    first_token[i] + s, which is its position for the read transform.
    """

    @property
    def page_id(self) -> NDArray[np.integer]: ...
    @property
    def first_token(self) -> NDArray[np.integer]: ...
    @property
    def begin(self) -> NDArray[np.integer]: ...
    @property
    def end(self) -> NDArray[np.integer]: ...


@dataclass(frozen=True, slots=True)
class PageRuns:
    """`PageColumns` as int64 arrays, with what the kernels ask of them."""

    page_id: NDArray[np.int64]
    first_token: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def from_columns(cls, columns: PageColumns) -> "PageRuns":
        if isinstance(columns, cls):
            return columns
        return cls(
            *(
                np.ascontiguousarray(column, dtype=np.int64)
                for column in (columns.page_id, columns.first_token, columns.begin, columns.end)
            )
        )

    @property
    def num_tokens(self) -> int:
        return int((self.end - self.begin).sum())

    @property
    def largest_position(self) -> int:
        """The largest token number; 0 if there is no entry."""
        return int((self.first_token + self.end - 1).max(initial=0))

    def slots(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Page id, slot and token number of every token, in order."""
        lengths = self.end - self.begin
        starts = np.cumsum(lengths) - lengths
        slot = np.arange(lengths.sum()) + np.repeat(self.begin - starts, lengths)
        page = np.repeat(self.page_id, lengths)
        return page, slot, slot + np.repeat(self.first_token, lengths)

    def cut(self, start: int, stop: int) -> "PageRuns":
        """The tokens [start, stop) of this run, counted in order."""
        lengths = self.end - self.begin
        starts = np.cumsum(lengths) - lengths
        begin = self.begin + np.clip(start - starts, 0, lengths)
        end = self.begin + np.clip(stop - starts, 0, lengths)
        kept = end > begin
        return PageRuns(self.page_id[kept], self.first_token[kept], begin[kept], end[kept])


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
