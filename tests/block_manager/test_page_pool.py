"""The page pool: one invariant a test."""

import numpy as np
import pytest

from qvg_engine.block_manager.page_pool import PagePool
from qvg_engine.errors import OutOfPagesError


def test_a_new_pool_is_all_free() -> None:
    pool = PagePool(5)
    assert (pool.num_pages, pool.num_free, pool.num_used) == (5, 5, 0)
    assert pool.ref_counts.tolist() == [0] * 5


def test_an_allocated_page_is_not_given_out_again() -> None:
    pool = PagePool(7)
    page_ids = np.concatenate([pool.allocate(3), pool.allocate(0), pool.allocate(4)])
    assert page_ids.dtype == np.int32
    assert sorted(page_ids.tolist()) == list(range(7))
    assert pool.ref_counts.tolist() == [1] * 7


def test_a_released_page_can_be_allocated_again() -> None:
    pool = PagePool(4)
    pool.allocate(2)
    page_ids = pool.allocate(2)
    assert pool.release(page_ids) == 2
    assert sorted(pool.allocate(2).tolist()) == sorted(page_ids.tolist())


def test_the_same_calls_give_the_same_pages() -> None:
    def pages() -> list[int]:
        pool = PagePool(10)
        pool.release(pool.allocate(6)[1:4])
        return [int(page_id) for page_id in pool.allocate(5)]

    assert pages() == pages()


def test_too_many_pages_are_refused_and_none_is_taken() -> None:
    pool = PagePool(3)
    pool.allocate(1)
    with pytest.raises(OutOfPagesError, match="3 pages wanted, but 2 of 3 are free"):
        pool.allocate(3)
    assert pool.num_free == 2
    pool.check_integrity()


def test_a_shared_page_is_free_after_its_last_release() -> None:
    pool = PagePool(2)
    page_ids = pool.allocate(1)
    pool.share(page_ids)
    assert pool.release(page_ids) == 0
    assert pool.num_used == 1
    assert pool.release(page_ids) == 1
    assert pool.num_used == 0


def test_pages_can_be_allocated_with_several_references() -> None:
    pool = PagePool(2)
    page_ids = pool.allocate(2, ref_count=3)
    assert [pool.release(page_ids) for _ in range(3)] == [0, 0, 2]


def test_an_id_listed_twice_loses_two_references() -> None:
    pool = PagePool(2)
    page_ids = pool.allocate(1, ref_count=2)
    assert pool.release(np.repeat(page_ids, 2)) == 1
    pool.check_integrity()


def test_count_freed_changes_nothing() -> None:
    pool = PagePool(4)
    shared, own = pool.allocate(1, ref_count=2), pool.allocate(2)
    page_ids = np.concatenate([shared, own])
    assert pool.count_freed(page_ids) == 2
    assert pool.count_freed(np.concatenate([page_ids, shared])) == 3
    assert pool.num_used == 3
    assert pool.release(page_ids) == 2


@pytest.mark.parametrize("bad_id", [-1, 3, 4], ids=["negative", "free", "too large"])
def test_releasing_what_is_not_in_use_changes_nothing(bad_id: int) -> None:
    pool = PagePool(4)
    page_ids = pool.allocate(3)
    ids = np.array([*page_ids, bad_id], dtype=np.int32)
    with pytest.raises(AssertionError, match=f"page {bad_id} is released but not in use"):
        pool.release(ids)
    assert pool.num_used == 3
    assert pool.ref_counts.tolist() == [1, 1, 1, 0]
    pool.check_integrity()


@pytest.mark.parametrize("bad_id", [-1, 3, 4], ids=["negative", "free", "too large"])
def test_sharing_what_is_not_in_use_changes_nothing(bad_id: int) -> None:
    pool = PagePool(4)
    page_ids = pool.allocate(3)
    ids = np.array([*page_ids, bad_id], dtype=np.int32)
    with pytest.raises(AssertionError, match=f"page {bad_id} is shared but not in use"):
        pool.share(ids)
    assert pool.ref_counts.tolist() == [1, 1, 1, 0]


def test_a_page_cannot_be_released_twice() -> None:
    pool = PagePool(4)
    page_ids = pool.allocate(2)
    with pytest.raises(AssertionError, match="not in use"):
        pool.release(np.repeat(page_ids, 2))
    assert pool.num_used == 2
    pool.check_integrity()


def broken_pool() -> PagePool:
    pool = PagePool(6)
    pool.release(pool.allocate(4)[:2])
    pool.check_integrity()
    return pool


def test_the_check_finds_a_lost_page() -> None:
    pool = broken_pool()
    pool._num_free -= 1
    with pytest.raises(AssertionError, match="0 times in the free list and has reference count 0"):
        pool.check_integrity()


def test_the_check_finds_a_page_that_is_free_twice() -> None:
    pool = broken_pool()
    pool._free_ids[0] = pool._free_ids[1]
    with pytest.raises(AssertionError, match=r"page \d is [02] times in the free list"):
        pool.check_integrity()


def test_the_check_finds_a_free_page_that_is_referenced() -> None:
    pool = broken_pool()
    pool._ref_counts[pool._free_ids[0]] = 1
    with pytest.raises(AssertionError, match="1 times in the free list and has reference count 1"):
        pool.check_integrity()


def test_the_check_finds_a_negative_reference_count() -> None:
    pool = broken_pool()
    pool._ref_counts[pool._free_ids[0]] = -1
    with pytest.raises(AssertionError, match="has reference count -1"):
        pool.check_integrity()


def test_the_check_finds_a_free_page_that_does_not_exist() -> None:
    pool = broken_pool()
    pool._free_ids[0] = 6
    with pytest.raises(AssertionError, match="page 6 is free but does not exist"):
        pool.check_integrity()


def test_the_check_finds_more_free_pages_than_there_are() -> None:
    pool = broken_pool()
    pool._num_free = 7
    with pytest.raises(AssertionError, match="7 of 6 pages are free"):
        pool.check_integrity()
