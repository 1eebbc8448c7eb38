"""The refinement pool against a dict, and its integrity check against what it should find."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qvg_engine.block_manager.refinement_pool import NO_PAGE, RefinementPool
from qvg_engine.errors import OutOfCodebooksError

NUM_PAGES = 12
PICK = st.integers(0, 2**16)


class PoolMachine(RuleBasedStateMachine):
    """Pages are used or free, as the block manager says; sets are what branches reserved."""

    @initialize(num_refinements=st.integers(0, 8))
    def start(self, num_refinements: int) -> None:
        self.pool = RefinementPool(num_refinements=num_refinements, num_pages=NUM_PAGES)
        self.sets: list[np.ndarray] = []
        self.used = np.zeros(NUM_PAGES, dtype=np.bool_)
        self.expected: dict[int, int] = {}

    @rule(count=st.integers(0, 5))
    def reserve(self, count: int) -> None:
        free = self.pool.num_free
        try:
            self.sets.append(self.pool.reserve(count))
        except OutOfCodebooksError:
            assert count > free
        else:
            assert self.pool.num_free == free - count

    @precondition(lambda self: self.sets)
    @rule(pick=PICK)
    def give_back(self, pick: int) -> None:
        mine = self.sets.pop(pick % len(self.sets))
        self.free([page for page, its in self.expected.items() if its in mine])
        self.pool.give_back(mine)

    @precondition(lambda self: self.sets)
    @rule(pick=PICK, count=st.integers(1, 4))
    def publish(self, pick: int, count: int) -> None:
        mine = self.sets[pick % len(self.sets)]
        pages = np.flatnonzero(~self.used)[:count].astype(np.int32)
        refined = np.full(len(pages), NO_PAGE, dtype=np.int32)
        chosen = min(len(pages), len(mine))
        refined[len(pages) - chosen :] = mine[:chosen]
        self.pool.release(mine)
        self.expected = {page: its for page, its in self.expected.items() if its not in mine}
        self.used[pages] = True
        self.pool.bind(pages, refined)
        pairs = zip(pages.tolist(), refined.tolist(), strict=True)
        self.expected |= {page: its for page, its in pairs if its != NO_PAGE}

    @rule(pick=PICK, count=st.integers(1, 4))
    def free_some(self, pick: int, count: int) -> None:
        used = np.flatnonzero(self.used)
        self.free(np.roll(used, pick)[:count].tolist())

    def free(self, pages: list[int]) -> None:
        self.pool.free_pages(np.asarray(pages, dtype=np.int32))
        self.used[pages] = False
        self.expected = {page: its for page, its in self.expected.items() if page not in pages}

    @invariant()
    def the_table_is_the_dict(self) -> None:
        table = self.pool.refinement_of
        found = {int(page): int(table[page]) for page in np.flatnonzero(table != NO_PAGE)}
        assert found == self.expected
        assert self.pool.num_reserved == sum(len(mine) for mine in self.sets)
        self.pool.check_integrity(self.used)


TestPool = PoolMachine.TestCase


def bound_pool() -> RefinementPool:
    pool = RefinementPool(num_refinements=3, num_pages=4)
    pool.bind(np.array([2, 3], np.int32), pool.reserve(2))
    return pool


def test_a_free_page_that_is_refined_is_found() -> None:
    with pytest.raises(AssertionError, match="page 3 is free, or being written, and refined"):
        bound_pool().check_integrity(np.array([False, False, True, False]))


def test_one_sided_references_are_found() -> None:
    pool = bound_pool()
    pool.refinement_of[2] = NO_PAGE
    with pytest.raises(AssertionError, match="do not refer to each other"):
        pool.check_integrity(np.ones(4, np.bool_))


def test_wrong_use_is_stopped() -> None:
    pool = bound_pool()
    mine = np.array([0, 1], np.int32)
    with pytest.raises(AssertionError, match="in use"):
        pool.give_back(mine)
    with pytest.raises(AssertionError, match="are refined"):
        pool.bind(np.array([2], np.int32), pool.reserve(1))
    with pytest.raises(AssertionError, match="not all reserved"):
        RefinementPool(num_refinements=1, num_pages=1).bind(
            np.zeros(1, np.int32), np.zeros(1, np.int32)
        )
