"""The codebook pool: which slots are whose, and which pages refer to the codebook in each.

A slot is room for one codebook in every book; a book is the K or the V of one layer. Slots are
reserved all books together, but each book fills, uses and frees its own place in them, because
layers need a new codebook at different times.

Memory is counted in rows: one vector of `head_dim` numbers per head and book. A slot takes as many
rows as its stream's budget allows, from anywhere, and lists them, so that streams with codebooks
of different sizes share one pool. Deals in ids only.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qvg_engine.errors import OutOfCodebooksError

NO_SLOT = -1
"""Stands where a page refers to no codebook."""
NO_ROW = -1
"""Stands behind the last row of a slot."""


class CodebookPool:
    """Slots for `num_books` books, out of `num_rows` rows, referenced by `num_pages` pages.

    There are `num_slots` slots of up to `max_rows` rows each. A codebook is referenced by as many
    pages as its count says, and lives until the last of them is freed. Not thread-safe.
    """

    def __init__(
        self, *, num_books: int, num_slots: int, max_rows: int, num_rows: int, num_pages: int
    ) -> None:
        assert 1 <= max_rows <= num_rows, f"slots of {max_rows} rows out of {num_rows}"
        assert num_books >= 1, f"a cache has at least one book, got {num_books}"
        assert num_slots >= 1, f"a pool needs at least one slot, got {num_slots}"
        assert num_pages >= 1, f"a cache has at least one page, got {num_pages}"
        self.num_books = num_books
        self.num_slots = num_slots
        self.num_rows = num_rows
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._row_table = np.full((num_slots, max_rows), NO_ROW, dtype=np.int32)
        self._is_reserved = np.zeros(num_slots, dtype=np.bool_)
        self._ref_counts = np.zeros((num_books, num_slots), dtype=np.int32)
        self._slot_of_page = np.full((num_books, num_pages), NO_SLOT, dtype=np.int32)

    @property
    def num_free_slots(self) -> int:
        """Slots that nobody has reserved."""
        return len(self._free_slots)

    @property
    def num_reserved_rows(self) -> int:
        """Rows that some slot has."""
        return self.num_rows - len(self._free_rows)

    @property
    def row_table(self) -> NDArray[np.int32]:
        """The rows of each slot in order, int32 [slots, max_rows]; a live view, read only."""
        return self._row_table

    @property
    def ref_counts(self) -> NDArray[np.int32]:
        """Pages that refer to each codebook, int32 [books, slots]; a live view, read only."""
        return self._ref_counts

    @property
    def slot_of_page(self) -> NDArray[np.int32]:
        """The slot that each page's codebook is in, int32 [books, pages]; a live view."""
        return self._slot_of_page

    def can_reserve(self, num_slots: int, rows_per_slot: int) -> bool:
        """Whether `reserve` would succeed."""
        return num_slots <= len(self._free_slots) and num_slots * rows_per_slot <= len(
            self._free_rows
        )

    def reserve(self, num_slots: int, rows_per_slot: int) -> NDArray[np.int32]:
        """Take free slots of `rows_per_slot` rows each; their ids, int32 [num_slots].

        Raises OutOfCodebooksError, and takes nothing, if fewer slots or rows are free.
        """
        assert num_slots >= 0
        assert 1 <= rows_per_slot <= self._row_table.shape[1], rows_per_slot
        if not self.can_reserve(num_slots, rows_per_slot):
            raise OutOfCodebooksError(
                f"{num_slots} codebook slots of {rows_per_slot} rows wanted, but "
                f"{len(self._free_slots)} slots and {len(self._free_rows)} rows are free: wait "
                "until another stream has finished"
            )
        slots = np.asarray([self._free_slots.pop() for _ in range(num_slots)], dtype=np.int32)
        for slot in slots:
            rows = [self._free_rows.pop() for _ in range(rows_per_slot)]
            self._row_table[slot, :rows_per_slot] = rows
        self._is_reserved[slots] = True
        return slots

    def give_back(self, slots: NDArray[np.int32]) -> None:
        """Free reserved slots that no page refers to any more, and their rows."""
        assert self._is_reserved[slots].all(), f"slots {slots} are not all reserved"
        in_use = slots[self._ref_counts[:, slots].any(axis=0)]
        assert not in_use.size, f"pages still refer to the codebooks in slots {in_use}"
        rows = self._row_table[slots]
        self._free_rows.extend(rows[rows != NO_ROW][::-1].tolist())
        self._row_table[slots] = NO_ROW
        self._is_reserved[slots] = False
        self._free_slots.extend(slots[::-1].tolist())

    def bind(self, page_ids: NDArray[np.int32], slots: NDArray[np.int32]) -> None:
        """Let pages, which refer to no codebook yet, refer to those in `slots` [books]."""
        assert slots.shape == (self.num_books,), slots.shape
        assert self._is_reserved[slots].all(), f"slots {slots} are not all reserved"
        wrong = _bind(page_ids, slots, self._slot_of_page, self._ref_counts)
        assert wrong < 0, f"page {wrong} refers to a codebook already"

    def unbind(self, page_ids: NDArray[np.int32]) -> None:
        """Take away the references of pages that are freed; pages without one are left alone."""
        _unbind(page_ids, self._slot_of_page, self._ref_counts)

    def check_integrity(self, page_is_used: NDArray[np.bool_]) -> None:
        """Raise AssertionError unless counts, reservations and pages in use [pages] agree."""
        bound = self._slot_of_page != NO_SLOT
        lost = np.flatnonzero(bound.any(axis=0) & ~page_is_used)
        if lost.size:
            raise AssertionError(f"page {lost[0]} is free and refers to a codebook")
        partly = np.flatnonzero(bound.any(axis=0) & ~bound.all(axis=0))
        if partly.size:
            raise AssertionError(f"page {partly[0]} refers to codebooks in some layers only")
        for book in range(self.num_books):
            slots = self._slot_of_page[book][bound[book]]
            counted = np.bincount(slots, minlength=self.num_slots)
            wrong = np.flatnonzero(counted != self._ref_counts[book])
            if wrong.size:
                slot = int(wrong[0])
                raise AssertionError(
                    f"codebook {slot} of book {book} is referenced by {counted[slot]} pages, "
                    f"{self._ref_counts[book, slot]} are counted"
                )
        unreserved = np.flatnonzero(self._ref_counts.any(axis=0) & ~self._is_reserved)
        if unreserved.size:
            raise AssertionError(f"slot {unreserved[0]} is in use but not reserved")
        free = np.sort(np.asarray(self._free_slots, dtype=np.int64))
        if not np.array_equal(free, np.flatnonzero(~self._is_reserved)):
            raise AssertionError("the free slots are not those that nobody reserved")
        held = self._row_table[self._row_table != NO_ROW]
        counted = np.bincount(np.concatenate([held, self._free_rows]).astype(np.int64))
        if counted.size != self.num_rows or (counted != 1).any():
            raise AssertionError("a row is not either free or in one slot")


@njit(cache=True)
def _bind(
    page_ids: NDArray[np.int32],
    slots: NDArray[np.int32],
    slot_of_page: NDArray[np.int32],
    ref_counts: NDArray[np.int32],
) -> int:
    """Returns a page that was bound already, and then changes nothing; -1 if there is none."""
    for book in range(slots.size):
        for page_id in page_ids:
            if slot_of_page[book, page_id] != NO_SLOT:
                return int(page_id)
    for book in range(slots.size):
        for page_id in page_ids:
            slot_of_page[book, page_id] = slots[book]
        ref_counts[book, slots[book]] += page_ids.size
    return -1


@njit(cache=True)
def _unbind(
    page_ids: NDArray[np.int32],
    slot_of_page: NDArray[np.int32],
    ref_counts: NDArray[np.int32],
) -> None:
    for book in range(slot_of_page.shape[0]):
        for page_id in page_ids:
            slot = slot_of_page[book, page_id]
            if slot != NO_SLOT:
                ref_counts[book, slot] -= 1
                slot_of_page[book, page_id] = NO_SLOT
