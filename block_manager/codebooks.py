"""The codebooks of all streams: who holds which, what the next span does, what spans reported.

And the refinement pages, which belong to the same branches.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.block_manager.codebook_budget import live_slots
from qvg_engine.block_manager.codebook_history import CodebookHistory
from qvg_engine.block_manager.codebook_policy import CodebookPolicy, SpanPlan, plan_span
from qvg_engine.block_manager.codebook_pool import NO_SLOT, CodebookPool
from qvg_engine.block_manager.refinement_pool import NO_PAGE, RefinementPool
from qvg_engine.errors import OutOfCodebooksError

_NO_REFINEMENTS = np.empty(0, dtype=np.int32)


class CodebookSizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much room there is: see `CodebookPool` and `RefinementPool`.

    A group is one head at one stage; `min_rows` are those of the smallest codebook.
    """

    num_books: int
    num_groups: int
    num_centroids: int
    num_slots: int
    min_rows: int = 1
    max_rows: int
    num_rows: int
    num_refinements: int = 0


class SpanFigures(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What the kernels report of one span: see `CodebookHistory.record`."""

    energy: NDArray[np.float32]
    residual: NDArray[np.float32]
    counts: NDArray[np.int32]
    num_centroids: NDArray[np.int32]


class CodebookSet:
    """The slots of one branch, int32 [slots], and which it uses in each book, int32 [books].

    `refinements` int32 [any number] are the refinement pages of its newest pages. `is_taken` says
    whether a branch has it at the moment.
    """

    __slots__ = ("current", "is_taken", "refinements", "slots")

    def __init__(
        self,
        slots: NDArray[np.int32],
        num_books: int,
        refinements: NDArray[np.int32] = _NO_REFINEMENTS,
    ) -> None:
        self.slots = slots
        self.refinements = refinements
        self.current = np.full(num_books, NO_SLOT, dtype=np.int32)
        self.is_taken = False


class Codebooks:
    """Pools, figures and policy behind one door. Not thread-safe.

    A span's life: `plan`, then `publish` once it is encoded, or nothing if that failed; `record`
    whenever its figures arrive, also after the next `plan`.
    """

    def __init__(self, sizes: CodebookSizes, policy: CodebookPolicy, *, num_pages: int) -> None:
        self.policy = policy
        self._min_rows = sizes.min_rows
        self.pool = CodebookPool(
            num_books=sizes.num_books,
            num_slots=sizes.num_slots,
            max_rows=sizes.max_rows,
            num_rows=sizes.num_rows,
            num_pages=num_pages,
        )
        self.refinements = RefinementPool(
            num_refinements=sizes.num_refinements, num_pages=num_pages
        )
        self.history = CodebookHistory(
            num_books=sizes.num_books,
            num_slots=sizes.num_slots,
            num_groups=sizes.num_groups,
            num_centroids=sizes.num_centroids,
        )

    def open_sets(
        self, num_slots: int, num_rows: int, num_refinements: int = 0
    ) -> list[CodebookSet]:
        """Reserve `num_rows` rows in all, for sets of up to `max_live` of these slots each.

        A set whose rows do not suffice for so many codebooks has fewer slots. Refinement pages are
        shared out evenly. Raises OutOfCodebooksError, and reserves nothing, if fewer slots, rows
        or refinement pages are free.
        """
        most = self.policy.max_live
        assert num_slots % most == 0, f"{num_slots} slots are no sets of {most}"
        if not num_slots:
            return []
        num_sets = num_slots // most
        assert num_refinements % num_sets == 0, f"{num_refinements} for {num_sets} sets"
        live = live_slots(num_rows // num_sets, min_rows=self._min_rows, max_live=most)
        assert num_rows % (num_sets * live) == 0, f"{num_rows} rows for {num_sets} x {live} slots"
        refinements = self.refinements.reserve(num_refinements)
        try:
            slots = self.pool.reserve(num_sets * live, num_rows // (num_sets * live))
        except OutOfCodebooksError:
            self.refinements.give_back(refinements)
            raise
        return [
            CodebookSet(part, self.pool.num_books, pages)
            for part, pages in zip(
                slots.reshape(num_sets, live), refinements.reshape(num_sets, -1), strict=True
            )
        ]

    def close_sets(self, sets: Sequence[CodebookSet]) -> None:
        """Give slots and refinement pages back; no page may refer to them any more."""
        for codebook_set in sets:
            self.pool.give_back(codebook_set.slots)
            self.refinements.give_back(codebook_set.refinements)

    def take(self, sets: Sequence[CodebookSet]) -> CodebookSet:
        """An unused set for a branch that commits for the first time.

        Raises OutOfCodebooksError if branches or pages hold all of them.
        """
        for codebook_set in sets:
            idle = not self.pool.ref_counts[:, codebook_set.slots].any()
            if idle and not codebook_set.is_taken:
                codebook_set.is_taken = True
                codebook_set.current[:] = NO_SLOT
                return codebook_set
        raise OutOfCodebooksError(
            f"all {len(sets)} sets of codebooks that were reserved are in use: reserve one for "
            "each branch that commits"
        )

    def plan(self, codebook_set: CodebookSet) -> SpanPlan:
        """What the branch's next span does in each book."""
        return plan_span(
            self.policy,
            self.history,
            own_slots=codebook_set.slots,
            current=codebook_set.current,
            ref_counts=self.pool.ref_counts,
        )

    def refined(self, codebook_set: CodebookSet, num_pages: int) -> NDArray[np.int32]:
        """The refinement page of each page of a commit, int32 [pages]: the newest have one.

        They are the branch's own, and written while the pages that they refined are still read.
        """
        count = min(num_pages, codebook_set.refinements.size)
        refined = np.full(num_pages, NO_PAGE, dtype=np.int32)
        refined[num_pages - count :] = codebook_set.refinements[:count]
        return refined

    def publish(
        self,
        codebook_set: CodebookSet,
        plan: SpanPlan,
        page_ids: NDArray[np.int32],
        refined: NDArray[np.int32],
    ) -> None:
        """The span is encoded in `page_ids`: they refer to its codebooks from now on.

        They are refined now, and those before them no longer.
        """
        self.pool.bind(page_ids, plan.slots)
        self.refinements.release(codebook_set.refinements)
        self.refinements.bind(page_ids, refined)
        codebook_set.current[:] = plan.slots

    def rollback(self, codebook_set: CodebookSet) -> None:
        """The span will not be published: what it wrote refines nothing."""
        self.refinements.release(codebook_set.refinements)

    def free_pages(self, page_ids: NDArray[np.int32]) -> None:
        """Pages are free: they refer to nothing any more."""
        self.pool.unbind(page_ids)
        self.refinements.free_pages(page_ids)

    def record(self, plan: SpanPlan, figures: SpanFigures) -> None:
        """Take in what the kernels reported of a span."""
        self.history.record(
            slots=plan.slots,
            actions=plan.actions,
            energy=figures.energy,
            residual=figures.residual,
            counts=figures.counts,
            num_centroids=figures.num_centroids,
        )
