"""Which tokens of which pages are read, in what order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


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

    @classmethod
    def join(cls, parts: "Sequence[PageRuns]") -> "PageRuns":
        """All entries of at least one part, in order."""
        if len(parts) == 1:
            return parts[0]
        columns = ((p.page_id, p.first_token, p.begin, p.end) for p in parts)
        return cls(*map(np.concatenate, zip(*columns, strict=True)))

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

    def packed(self) -> "PageRuns":
        """The same tokens, numbered from 0 on without gaps."""
        lengths = self.end - self.begin
        first_token = np.cumsum(lengths) - lengths - self.begin
        return PageRuns(self.page_id, first_token, self.begin, self.end)

    def cut(self, start: int, stop: int) -> "PageRuns":
        """The tokens [start, stop) of this run, counted in order."""
        lengths = self.end - self.begin
        starts = np.cumsum(lengths) - lengths
        begin = self.begin + np.clip(start - starts, 0, lengths)
        end = self.begin + np.clip(stop - starts, 0, lengths)
        kept = end > begin
        return PageRuns(self.page_id[kept], self.first_token[kept], begin[kept], end[kept])

    def spread(self, num_tokens: int) -> "PageRuns":
        """At most so many tokens: whole entries, evenly spread over all of them."""
        if self.num_tokens <= num_tokens:
            return self
        longest = int((self.end - self.begin).max())
        count = min(len(self.begin), num_tokens // longest)
        chosen = np.linspace(0, len(self.begin) - 1, count).astype(np.int64)
        return PageRuns(
            self.page_id[chosen], self.first_token[chosen], self.begin[chosen], self.end[chosen]
        )


class PageSizes(Protocol):
    """What all pages say of themselves, however they store their rows."""

    @property
    def num_pages(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


def check_decode(pages: PageSizes, runs: PageRuns, out: Tensor, start: int) -> None:
    """Assert that `runs` lie in `pages` and fit `out` from `start` on: kernels check no bounds."""
    assert out.is_contiguous()
    assert out.shape[::2] == (pages.num_heads, pages.head_dim), (out.shape, pages.num_heads)
    assert 0 <= start <= start + runs.num_tokens <= out.shape[1], (start, out.shape)
    if len(runs.page_id) == 0:
        return
    assert 0 <= runs.page_id.min() <= runs.page_id.max() < pages.num_pages, runs.page_id
    assert 0 <= runs.begin.min() <= runs.end.max() <= pages.page_size, (runs.begin, runs.end)
    assert (runs.begin <= runs.end).all(), (runs.begin, runs.end)
    assert (runs.first_token + runs.begin).min() >= 0, runs.first_token
