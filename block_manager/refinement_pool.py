"""The refinement pool: which pages are stored with more precision than their format gives them.

A refined page has a second page, of what its own codes lose. There are few of them, a branch keeps
the same ones for ever, and they are always those of its newest pages. Deals in ids only.
"""

import numpy as np
from numpy.typing import NDArray

from qvg_engine.errors import OutOfCodebooksError

NO_PAGE = -1
"""Stands where a page is not refined, or a refinement page refines none."""


class RefinementPool:
    """`num_refinements` refinement pages for `num_pages` pages. Not thread-safe."""

    def __init__(self, *, num_refinements: int, num_pages: int) -> None:
        assert num_refinements >= 0, num_refinements
        self.num_refinements = num_refinements
        self._free = list(range(num_refinements - 1, -1, -1))
        self._is_reserved = np.zeros(num_refinements, dtype=np.bool_)
        self._refinement_of = np.full(num_pages, NO_PAGE, dtype=np.int32)
        self._page_of = np.full(num_refinements, NO_PAGE, dtype=np.int32)

    @property
    def num_free(self) -> int:
        """Refinement pages that nobody has reserved."""
        return len(self._free)

    @property
    def num_reserved(self) -> int:
        """Refinement pages that some branch has, or will have."""
        return self.num_refinements - len(self._free)

    @property
    def refinement_of(self) -> NDArray[np.int32]:
        """The refinement page of each page, int32 [pages], or -1; a live view, read only."""
        return self._refinement_of

    def reserve(self, count: int) -> NDArray[np.int32]:
        """Take free refinement pages; their ids, int32 [count].

        Raises OutOfCodebooksError, and takes nothing, if fewer are free.
        """
        assert count >= 0, count
        if count > len(self._free):
            raise OutOfCodebooksError(
                f"{count} refinement pages wanted, but {len(self._free)} are free: wait until "
                "another stream has finished"
            )
        taken = np.asarray([self._free.pop() for _ in range(count)], dtype=np.int32)
        self._is_reserved[taken] = True
        return taken

    def give_back(self, refinements: NDArray[np.int32]) -> None:
        """Free reserved refinement pages that refine no page any more."""
        assert self._is_reserved[refinements].all(), f"{refinements} are not all reserved"
        in_use = refinements[self._page_of[refinements] != NO_PAGE]
        assert not in_use.size, f"refinement pages {in_use} are in use"
        self._is_reserved[refinements] = False
        self._free.extend(refinements[::-1].tolist())

    def bind(self, page_ids: NDArray[np.int32], refinements: NDArray[np.int32]) -> None:
        """Let pages, none of which is refined, be refined by these, which refine no page; -1: not
        at all."""
        chosen = refinements != NO_PAGE
        pages, theirs = page_ids[chosen], refinements[chosen]
        assert self._is_reserved[theirs].all(), f"{theirs} are not all reserved"
        assert (self._refinement_of[pages] == NO_PAGE).all(), f"some of {pages} are refined"
        assert (self._page_of[theirs] == NO_PAGE).all(), f"some of {theirs} are in use"
        self._refinement_of[pages] = theirs
        self._page_of[theirs] = pages

    def release(self, refinements: NDArray[np.int32]) -> None:
        """Take refinement pages away from the pages that they refine, if they do."""
        pages = self._page_of[refinements]
        self._refinement_of[pages[pages != NO_PAGE]] = NO_PAGE
        self._page_of[refinements] = NO_PAGE

    def free_pages(self, page_ids: NDArray[np.int32]) -> None:
        """Pages are free: they are not refined any more."""
        refinements = self._refinement_of[page_ids]
        self._page_of[refinements[refinements != NO_PAGE]] = NO_PAGE
        self._refinement_of[page_ids] = NO_PAGE

    def check_integrity(self, page_is_used: NDArray[np.bool_]) -> None:
        """Raise AssertionError unless both directions, reservations and pages in use agree."""
        refined = np.flatnonzero(self._refinement_of != NO_PAGE)
        lost = refined[~page_is_used[refined]]
        if lost.size:
            raise AssertionError(f"page {lost[0]} is free, or being written, and refined")
        theirs = self._refinement_of[refined]
        in_use = np.flatnonzero(self._page_of != NO_PAGE)
        if theirs.size != in_use.size or not np.array_equal(self._page_of[theirs], refined):
            raise AssertionError("pages and refinement pages do not refer to each other")
        if not self._is_reserved[in_use].all():
            raise AssertionError("a refinement page is in use but not reserved")
        free = np.sort(np.asarray(self._free, dtype=np.int64))
        if not np.array_equal(free, np.flatnonzero(~self._is_reserved)):
            raise AssertionError("the free refinement pages are not those that nobody reserved")
