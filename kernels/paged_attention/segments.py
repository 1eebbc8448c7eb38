"""What attention attends to: runs of tokens in pages, or in dense tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.page_runs import PageColumns, PageRuns
from qvg_engine.kernels.paged_attention.pages import LayerPages
from qvg_engine.kernels.paged_attention.transform import ReadTransform


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


def pack(segments: Sequence[Segment], max_tokens: int) -> Iterator[list[Segment]]:
    """Cut the segments, in order, into pieces of at most `max_tokens` tokens."""
    piece: list[Segment] = []
    room = max_tokens
    for segment in segments:
        start = 0
        while start < segment.num_tokens:
            stop = min(segment.num_tokens, start + room)
            whole = start == 0 and stop == segment.num_tokens
            piece.append(segment if whole else segment.cut(start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield piece
                piece, room = [], max_tokens
    if piece:
        yield piece


def transform_rows(segment: DenseSegment, transform: ReadTransform) -> tuple[Tensor, Tensor]:
    """K and V of a segment as they are attended to, [tokens, heads, head_dim]."""
    if segment.positions is None:
        return segment.keys, segment.values
    return (
        transform.keys(segment.keys, segment.positions),
        transform.values(segment.values, segment.positions),
    )
