"""Codebook slots: never two holders, never freed while a page refers to them."""

import numpy as np
import pytest

from qvg_engine.block_manager.codebook_pool import NO_ROW, NO_SLOT, CodebookPool
from qvg_engine.errors import OutOfCodebooksError

BOOKS, SLOTS, ROWS, MAX_ROWS, PAGES = 4, 6, 20, 5, 30


@pytest.fixture
def pool() -> CodebookPool:
    return new_pool()


def new_pool() -> CodebookPool:
    return CodebookPool(
        num_books=BOOKS, num_slots=SLOTS, max_rows=MAX_ROWS, num_rows=ROWS, num_pages=PAGES
    )


def pages(*ids: int) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def used(*ids: int) -> np.ndarray:
    mask = np.zeros(PAGES, dtype=np.bool_)
    mask[list(ids)] = True
    return mask


def test_slots_and_rows_are_handed_out_once(pool: CodebookPool) -> None:
    first, second = pool.reserve(2, 3), pool.reserve(2, 5)
    assert len({*first.tolist(), *second.tolist()}) == 4
    assert (pool.num_free_slots, pool.num_reserved_rows) == (2, 16)
    rows = pool.row_table[np.concatenate([first, second])]
    assert (rows[:2, 3:] == NO_ROW).all()
    assert len({*rows[:2, :3].ravel().tolist(), *rows[2:].ravel().tolist()}) == 16
    for wanted in ((1, 5), (3, 1)):
        with pytest.raises(OutOfCodebooksError, match="2 slots and 4 rows are free"):
            pool.reserve(*wanted)
    assert pool.num_reserved_rows == 16
    pool.give_back(first)
    assert pool.num_reserved_rows == 10
    assert sorted(pool.reserve(2, 5).tolist()) == sorted(first.tolist())


def test_each_book_refers_to_its_own_slot(pool: CodebookPool) -> None:
    slots = pool.reserve(2, 1)
    a, b = slots.tolist()
    pool.bind(pages(3, 4), np.asarray([a, b, a, a], dtype=np.int32))
    pool.bind(pages(5), np.asarray([b, b, a, b], dtype=np.int32))
    assert pool.ref_counts[:, a].tolist() == [2, 0, 3, 2]
    assert pool.ref_counts[:, b].tolist() == [1, 3, 0, 1]
    assert pool.slot_of_page[:, 5].tolist() == [b, b, a, b]
    pool.check_integrity(used(3, 4, 5))
    pool.unbind(pages(4, 9))
    assert pool.ref_counts[:, a].tolist() == [1, 0, 2, 1]
    assert (pool.slot_of_page[:, 4] == NO_SLOT).all()
    pool.check_integrity(used(3, 5))


def test_a_slot_in_use_is_not_given_back(pool: CodebookPool) -> None:
    slots = pool.reserve(1, 2)
    pool.bind(pages(0), np.repeat(slots, BOOKS))
    with pytest.raises(AssertionError, match="pages still refer"):
        pool.give_back(slots)
    pool.unbind(pages(0))
    pool.give_back(slots)
    assert pool.num_free_slots == SLOTS
    assert pool.num_reserved_rows == 0


def test_a_page_is_bound_once_and_to_reserved_slots(pool: CodebookPool) -> None:
    slots = pool.reserve(1, 2)
    pool.bind(pages(7), np.repeat(slots, BOOKS))
    before = pool.ref_counts.copy()
    with pytest.raises(AssertionError, match="page 7 refers to a codebook already"):
        pool.bind(pages(8, 7), np.repeat(slots, BOOKS))
    assert np.array_equal(pool.ref_counts, before)
    with pytest.raises(AssertionError, match="not all reserved"):
        pool.bind(pages(9), np.full(BOOKS, (slots[0] + 1) % SLOTS, dtype=np.int32))


def test_broken_books_are_found(pool: CodebookPool) -> None:
    slots = pool.reserve(1, 2)
    pool.bind(pages(1), np.repeat(slots, BOOKS))
    with pytest.raises(AssertionError, match="page 1 is free and refers"):
        pool.check_integrity(used())
    pool.ref_counts[2, slots[0]] += 1
    with pytest.raises(AssertionError, match="referenced by 1 pages, 2 are counted"):
        pool.check_integrity(used(1))
    pool.ref_counts[2, slots[0]] -= 1
    pool.slot_of_page[3, 1] = NO_SLOT
    with pytest.raises(AssertionError, match="in some layers only"):
        pool.check_integrity(used(1))


@pytest.mark.parametrize("seed", range(20))
def test_random_streams_lose_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = new_pool()
    free_pages = list(range(PAGES))
    streams: list[tuple[np.ndarray, list[int]]] = []
    for _ in range(400):
        act = rng.integers(4)
        size = int(rng.integers(1, MAX_ROWS + 1))
        if act == 0 and pool.can_reserve(2, size):
            streams.append((pool.reserve(2, size), []))
        elif act == 1 and streams and free_pages:
            slots, held = streams[rng.integers(len(streams))]
            taken = [free_pages.pop() for _ in range(min(3, len(free_pages)))]
            pool.bind(pages(*taken), rng.choice(slots, BOOKS).astype(np.int32))
            held.extend(taken)
        elif act == 2 and streams:
            _, held = streams[rng.integers(len(streams))]
            freed, held[:] = held[:2], held[2:]
            pool.unbind(pages(*freed))
            free_pages.extend(freed)
        elif act == 3 and streams and rng.random() < 0.3:
            slots, held = streams.pop(rng.integers(len(streams)))
            pool.unbind(pages(*held))
            free_pages.extend(held)
            pool.give_back(slots)
        pool.check_integrity(used(*(page for _, held in streams for page in held)))
    assert SLOTS - pool.num_free_slots == 2 * len(streams)
