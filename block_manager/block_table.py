"""The block table of one branch: which pages hold its tokens, in order.

A table knows page ids, not reference counts: it reports the pages that it no longer names, and
its caller gives up the reference. A table holds one reference to a page, however many of its
entries name it.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from qvg_engine.block_manager.page_count import pages_for
from qvg_engine.block_manager.page_entries import PageEntries
from qvg_engine.block_manager.table_loops import (
    Columns,
    append_entries,
    copy_columns,
    cut_entries,
    distinct_pages,
    first_entry_ending_after,
    first_entry_starting_at,
    new_columns,
)

__all__ = ["BlockTable", "PageEntries"]

_MAX_TOKENS = 2**31
_NO_PAGES = np.empty(0, dtype=np.int32)


class BlockTable:
    """The entries of one branch, kept as contiguous columns.

    Tokens are numbered from 0 in the order of their commits; eviction renumbers nothing. The
    columns only ever grow at their end; a cut writes new ones. So the snapshots that `entries`
    returns are views, and yet never change.
    """

    __slots__ = (
        "_columns",
        "_next_token",
        "_num_entries",
        "_num_tokens",
        "_snapshot",
        "page_size",
    )

    def __init__(self, page_size: int) -> None:
        assert page_size >= 1, f"a page has at least one slot, got {page_size}"
        self.page_size = page_size
        self._columns = new_columns(16)
        self._num_entries = 0
        self._num_tokens = 0
        self._next_token = 0
        self._snapshot: PageEntries | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that a pass can see."""
        return self._num_tokens

    @property
    def next_token(self) -> int:
        """The number that the next token will get."""
        return self._next_token

    @property
    def page_ids(self) -> NDArray[np.int32]:
        """The pages that the table holds a reference to, each once, int32 [pages]."""
        page_ids: NDArray[np.int32] = distinct_pages(self._columns[0][: self._num_entries])
        return page_ids

    def copy(self) -> Self:
        """A table of its own with the same entries and numbering."""
        capacity = self._num_entries + self._num_entries // 4 + 16
        return self._over(copy_columns(self._columns, self._num_entries, capacity))

    def reserve(self, num_pages: int) -> None:
        """Make room, so that appending `num_pages` pages allocates nothing."""
        needed = self._num_entries + num_pages
        capacity = self._columns[0].size
        if needed > capacity:
            self._columns = copy_columns(
                self._columns, self._num_entries, max(needed, 2 * capacity)
            )

    def append(self, page_ids: NDArray[np.int32], num_tokens: int) -> None:
        """Add the pages (int32 ids) of one commit; its last page may be part full."""
        assert num_tokens >= 1, f"a commit has at least one token, got {num_tokens}"
        assert page_ids.size == pages_for(num_tokens, self.page_size), (
            f"{num_tokens} tokens do not fill {page_ids.size} pages of {self.page_size}"
        )
        assert self._next_token + num_tokens < _MAX_TOKENS, "token numbers are 32 bits wide in rows"
        self.reserve(page_ids.size)
        append_entries(
            self._columns,
            self._num_entries,
            page_ids,
            self._next_token,
            num_tokens,
            self.page_size,
        )
        self._num_entries += page_ids.size
        self._num_tokens += num_tokens
        self._next_token += num_tokens
        self._snapshot = None

    def with_commit(
        self, page_ids: NDArray[np.int32], num_tokens: int, at_token: int | None
    ) -> tuple[Self, NDArray[np.int32]]:
        """The table that takes this one's place after a commit, and the pages it drops.

        With `at_token` the tokens from there on are dropped before the pages are added. This
        table is as before, until one of the two is changed: then the other must not be used.
        """
        table = self._over(self._columns)
        dropped = _NO_PAGES if at_token is None else table.truncate(at_token)
        table.append(page_ids, num_tokens)
        return table, dropped

    def evict(self, sink_tokens: int, window_start: int) -> NDArray[np.int32]:
        """Drop the tokens `sink_tokens <= t < window_start`; returns the pages no longer named.

        A page that is cut keeps its valid range. One that is cut in its middle keeps two
        entries, and stays one page of this table.
        """
        assert sink_tokens >= 0, f"sink_tokens is {sink_tokens}"
        return self._cut(sink_tokens, min(window_start, self._next_token))

    def truncate(self, at_token: int) -> NDArray[np.int32]:
        """Drop the tokens `t >= at_token` and number on from there; returns the pages dropped."""
        assert 0 <= at_token <= self._next_token, (
            f"cannot cut at token {at_token}: the branch has {self._next_token}"
        )
        dropped = self._cut(at_token, self._next_token)
        self._next_token = at_token
        return dropped

    def pages_to_truncate(self, at_token: int) -> NDArray[np.int32]:
        """The pages that `truncate(at_token)` would drop; changes nothing."""
        return self._over(self._columns).truncate(at_token)

    def entries(self, upto_token: int | None = None) -> PageEntries:
        """The visible entries, or those of the tokens `t < upto_token`; see PageEntries.

        The same object until the table changes, and views of what the table holds; only an
        `upto_token` that cuts a page costs a copy.
        """
        if self._snapshot is None:
            self._snapshot = self._first_entries(self._num_entries)
        if upto_token is None or upto_token >= self._next_token:
            return self._snapshot
        return self._entries_before(upto_token)

    def _over(self, columns: Columns) -> Self:
        """A table with this one's counts over columns that hold its entries."""
        table = type(self).__new__(type(self))
        table.page_size = self.page_size
        table._columns = columns
        table._num_entries = self._num_entries
        table._num_tokens = self._num_tokens
        table._next_token = self._next_token
        table._snapshot = None
        return table

    def _entries_before(self, token: int) -> PageEntries:
        num_entries = first_entry_starting_at(self._columns, self._num_entries, token)
        first_token, end = self._columns[1], self._columns[3]
        if num_entries == 0 or first_token[num_entries - 1] + end[num_entries - 1] <= token:
            return self._first_entries(num_entries)
        part = self._over(self._columns)
        part.truncate(token)
        return part.entries()

    def _first_entries(self, num_entries: int) -> PageEntries:
        return PageEntries(*(column[:num_entries] for column in self._columns))

    def _cut(self, low: int, high: int) -> NDArray[np.int32]:
        dropped: NDArray[np.int32] = _NO_PAGES
        first = first_entry_ending_after(self._columns, self._num_entries, low)
        last = first_entry_starting_at(self._columns, self._num_entries, high)
        if low >= high or first >= last:
            return dropped
        self._columns, self._num_entries, num_removed, dropped = cut_entries(
            self._columns, self._num_entries, low, high
        )
        self._num_tokens -= num_removed
        self._snapshot = None
        return dropped

    def check_integrity(self) -> None:
        """Raise AssertionError unless the entries are valid, in order, and add up."""
        page_id, first_token, begin, end, packed = (
            column[: self._num_entries] for column in self._columns
        )
        bad = np.flatnonzero((begin < 0) | (begin >= end) | (end > self.page_size))
        if bad.size:
            entry = int(bad[0])
            raise AssertionError(
                f"entry {entry} (page {page_id[entry]}) has slots {begin[entry]} to {end[entry]}"
            )
        if np.any(first_token[1:] + begin[1:] < first_token[:-1] + end[:-1]):
            raise AssertionError("entries overlap, or are not in the order of their tokens")
        if self._num_entries and first_token[-1] + end[-1] > self._next_token:
            raise AssertionError(f"a token >= {self._next_token} is visible, but not numbered yet")
        if not np.array_equal(packed, np.stack((page_id, first_token, begin, end), axis=1)):
            raise AssertionError("the packed rows are not the columns")
        moved = (page_id[1:] == page_id[:-1]) & (first_token[1:] != first_token[:-1])
        page_ids = np.sort(self.page_ids)
        if np.any(moved) or np.any(page_ids[1:] == page_ids[:-1]):
            raise AssertionError("a page stands in two places of the table")
        num_tokens = int((end - begin).sum())
        if num_tokens != self._num_tokens:
            raise AssertionError(f"{num_tokens} tokens are visible, {self._num_tokens} are counted")
