"""The page pool: which page ids are free, and how often each of the others is referenced.

It knows neither owners nor tables, only ids and counts. Ids are handed out from a stack, so a
page that was freed last is used first, and the same calls always give the same ids.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qvg_engine.errors import OutOfPagesError


class PagePool:
    """`num_pages` page ids with reference counts. Not thread-safe."""

    def __init__(self, num_pages: int) -> None:
        assert num_pages >= 1, f"a pool needs at least one page, got {num_pages}"
        self.num_pages = num_pages
        # The stack of free ids is free_ids[:num_free]; what lies above is stale.
        self._free_ids = np.arange(num_pages - 1, -1, -1, dtype=np.int32)
        self._num_free = num_pages
        self._ref_counts = np.zeros(num_pages, dtype=np.int32)

    @property
    def num_free(self) -> int:
        """Pages that nobody references."""
        return self._num_free

    @property
    def num_used(self) -> int:
        """Pages that are referenced at least once."""
        return self.num_pages - self._num_free

    @property
    def ref_counts(self) -> NDArray[np.int32]:
        """The reference count of every page, int32 [num_pages]; a live view, not to be written."""
        return self._ref_counts

    def allocate(self, num_pages: int, *, ref_count: int = 1) -> NDArray[np.int32]:
        """Take free pages and set their reference count.

        Returns the ids, int32 [num_pages]. Raises OutOfPagesError, and takes nothing, if fewer
        pages are free.
        """
        assert num_pages >= 0
        assert ref_count >= 1
        if num_pages > self._num_free:
            raise OutOfPagesError(
                f"{num_pages} pages wanted, but {self._num_free} of {self.num_pages} are free: "
                "run fewer streams at once or give the engine more KV memory"
            )
        page_ids: NDArray[np.int32] = _allocate(
            num_pages, ref_count, self._free_ids, self._num_free, self._ref_counts
        )
        self._num_free -= num_pages
        return page_ids

    def share(self, page_ids: NDArray[np.int32]) -> None:
        """Add one reference to each page (int32 ids, all of them in use)."""
        num_in_use = _share(page_ids, self._ref_counts)
        assert num_in_use == page_ids.size, f"page {page_ids[num_in_use]} is shared but not in use"

    def release(self, page_ids: NDArray[np.int32]) -> int:
        """Take one reference from each page; returns how many of them are free now.

        An id that is listed twice loses two references. Nothing is changed if a page would lose
        more references than it has.
        """
        num_freed, num_in_use = _release(page_ids, self._free_ids, self._num_free, self._ref_counts)
        assert num_in_use == page_ids.size, (
            f"page {page_ids[num_in_use]} is released but not in use"
        )
        self._num_free += num_freed
        return int(num_freed)

    def last_freed(self, num_pages: int) -> NDArray[np.int32]:
        """The pages that the last `release` freed, if it freed `num_pages`; until the next call."""
        return self._free_ids[self._num_free - num_pages : self._num_free]

    def count_freed(self, page_ids: NDArray[np.int32]) -> int:
        """How many pages `release(page_ids)` would free; changes nothing."""
        ids, num_references = np.unique(page_ids, return_counts=True)
        return int(np.count_nonzero(self._ref_counts[ids] == num_references))

    def check_integrity(self) -> None:
        """Raise AssertionError unless each page is either free, once, or referenced."""
        if not 0 <= self._num_free <= self.num_pages:
            raise AssertionError(f"{self._num_free} of {self.num_pages} pages are free")
        free_ids = self._free_ids[: self._num_free]
        outside = free_ids[(free_ids < 0) | (free_ids >= self.num_pages)]
        if outside.size:
            raise AssertionError(f"page {outside[0]} is free but does not exist")
        times_free = np.bincount(free_ids, minlength=self.num_pages)
        wrong = np.flatnonzero(times_free + (self._ref_counts > 0) != 1)
        if wrong.size:
            page_id = int(wrong[0])
            raise AssertionError(
                f"page {page_id} is {times_free[page_id]} times in the free list and has "
                f"reference count {self._ref_counts[page_id]}"
            )
        if int(self._ref_counts.min()) < 0:
            page_id = int(self._ref_counts.argmin())
            raise AssertionError(f"page {page_id} has reference count {self._ref_counts[page_id]}")


@njit(cache=True)
def _allocate(
    num_pages: int,
    ref_count: int,
    free_ids: NDArray[np.int32],
    num_free: int,
    ref_counts: NDArray[np.int32],
) -> NDArray[np.int32]:
    page_ids = np.empty(num_pages, dtype=np.int32)
    for index in range(num_pages):
        page_id = free_ids[num_free - 1 - index]
        page_ids[index] = page_id
        ref_counts[page_id] = ref_count
    return page_ids


@njit(cache=True)
def _share(page_ids: NDArray[np.int32], ref_counts: NDArray[np.int32]) -> int:
    """Returns how many leading ids are in use; counts change only if all are."""
    for index in range(page_ids.size):
        page_id = page_ids[index]
        if page_id < 0 or page_id >= ref_counts.size or ref_counts[page_id] < 1:
            return index
    for index in range(page_ids.size):
        ref_counts[page_ids[index]] += 1
    return page_ids.size


@njit(cache=True)
def _release(
    page_ids: NDArray[np.int32],
    free_ids: NDArray[np.int32],
    num_free: int,
    ref_counts: NDArray[np.int32],
) -> tuple[int, int]:
    """Returns pages freed, and how many leading ids were in use; all or nothing changes."""
    num_freed = 0
    for index in range(page_ids.size):
        page_id = page_ids[index]
        if page_id < 0 or page_id >= ref_counts.size or ref_counts[page_id] < 1:
            for done in range(index):
                ref_counts[page_ids[done]] += 1
            return 0, index
        ref_counts[page_id] -= 1
        if ref_counts[page_id] == 0:
            # Above the stack until the caller moves its top.
            free_ids[num_free + num_freed] = page_id
            num_freed += 1
    return num_freed, page_ids.size
