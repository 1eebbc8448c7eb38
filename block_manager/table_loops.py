"""The loops over the entries of a block table.

Entries are four columns and the same as rows (`page_id`, `first_token`, `begin`, `end`, `packed`;
see PageEntries) in the order of their tokens, of which the first `num_entries` are in use. Rows
are kept beside the columns, not made when they are asked for, because a step that changes no
table must not pay for them.
"""

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Columns: TypeAlias = tuple[
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
]


@njit(cache=True)
def new_columns(capacity: int) -> Columns:
    """Columns of `capacity` entries, not filled."""
    return (
        np.empty(capacity, dtype=np.int32),
        np.empty(capacity, dtype=np.int64),
        np.empty(capacity, dtype=np.int32),
        np.empty(capacity, dtype=np.int32),
        np.empty((capacity, 4), dtype=np.int32),
    )


@njit(cache=True)
def _copy_entries(source: Columns, start: int, target: Columns, at: int, count: int) -> None:
    """Copy `count` entries of `source` from `start` on to `target` from `at` on."""
    _copy_numbers(source[0], start, target[0], at, count)
    _copy_numbers(source[1], start, target[1], at, count)
    _copy_numbers(source[2], start, target[2], at, count)
    _copy_numbers(source[3], start, target[3], at, count)
    _copy_numbers(source[4].reshape(-1), 4 * start, target[4].reshape(-1), 4 * at, 4 * count)


@njit(cache=True)
def _copy_numbers(
    source: NDArray[np.integer], start: int, target: NDArray[np.integer], at: int, count: int
) -> None:
    # Assigning the slice takes four times as long: Numba allows for an overlap.
    target_part = target[at : at + count]
    source_part = source[start : start + count]
    for index in range(count):
        target_part[index] = source_part[index]


@njit(cache=True)
def copy_columns(columns: Columns, num_entries: int, capacity: int) -> Columns:
    """The entries in columns of their own with room for `capacity`."""
    copy: Columns = new_columns(capacity)
    _copy_entries(columns, 0, copy, 0, num_entries)
    return copy


@njit(cache=True)
def append_entries(
    columns: Columns,
    num_entries: int,
    page_ids: NDArray[np.int32],
    first_token: int,
    num_tokens: int,
    page_size: int,
) -> None:
    """Write an entry a page behind the others; all pages are full but the last."""
    for index in range(page_ids.size):
        _write_entry(
            columns,
            num_entries + index,
            page_ids[index],
            first_token + index * page_size,
            0,
            min(page_size, num_tokens - index * page_size),
        )


@njit(cache=True)
def _write_entry(
    columns: Columns, entry: int, page_id: int, first_token: int, begin: int, end: int
) -> None:
    columns[0][entry] = page_id
    columns[1][entry] = first_token
    columns[2][entry] = begin
    columns[3][entry] = end
    columns[4][entry, 0] = page_id
    columns[4][entry, 1] = first_token
    columns[4][entry, 2] = begin
    columns[4][entry, 3] = end


@njit(cache=True)
def first_entry_ending_after(columns: Columns, num_entries: int, token: int) -> int:
    """The first entry with a token >= `token`; `num_entries` if there is none."""
    first_token, end = columns[1], columns[3]
    low, high = 0, num_entries
    while low < high:
        middle = (low + high) // 2
        if first_token[middle] + end[middle] > token:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True)
def first_entry_starting_at(columns: Columns, num_entries: int, token: int) -> int:
    """The first entry with all its tokens >= `token`; `num_entries` if there is none."""
    first_token, begin = columns[1], columns[2]
    low, high = 0, num_entries
    while low < high:
        middle = (low + high) // 2
        if first_token[middle] + begin[middle] >= token:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True)
def cut_entries(
    columns: Columns, num_entries: int, low: int, high: int
) -> tuple[Columns, int, int, NDArray[np.int32]]:
    """The entries without the tokens `low <= t < high`, in columns of their own.

    Returns the columns (with room to grow), the number of entries, the number of tokens that
    went, and the ids of the pages that no entry names any more, each once.
    """
    page_id, first_token, begin, end, _ = columns
    first = first_entry_ending_after(columns, num_entries, low)
    last = max(first, first_entry_starting_at(columns, num_entries, high))
    capacity = num_entries + num_entries // 4 + 16
    kept = new_columns(capacity)
    _copy_entries(columns, 0, kept, 0, first)
    num_kept = first
    num_removed = 0
    for entry in range(first, last):
        cut_begin = max(begin[entry], low - first_token[entry])
        cut_end = min(end[entry], high - first_token[entry])
        num_removed += cut_end - cut_begin
        if begin[entry] < cut_begin:
            _write_entry(
                kept, num_kept, page_id[entry], first_token[entry], begin[entry], cut_begin
            )
            num_kept += 1
        if cut_end < end[entry]:
            _write_entry(kept, num_kept, page_id[entry], first_token[entry], cut_end, end[entry])
            num_kept += 1
    _copy_entries(columns, last, kept, num_kept, num_entries - last)
    around = kept[0][max(first - 1, 0) : num_kept + min(1, num_entries - last)]
    dropped = _pages_not_in(page_id[first:last], around)
    return kept, num_kept + num_entries - last, num_removed, dropped


@njit(cache=True)
def _pages_not_in(page_ids: NDArray[np.int32], kept: NDArray[np.int32]) -> NDArray[np.int32]:
    """The distinct ids that are not in `kept` (a few); equal ids are neighbours."""
    dropped = np.empty(page_ids.size, dtype=np.int32)
    num_dropped = 0
    for index in range(page_ids.size):
        is_dropped = index == 0 or page_ids[index] != page_ids[index - 1]
        for kept_id in kept:
            is_dropped = is_dropped and page_ids[index] != kept_id
        if is_dropped:
            dropped[num_dropped] = page_ids[index]
            num_dropped += 1
    return dropped[:num_dropped]


@njit(cache=True)
def distinct_pages(page_id: NDArray[np.int32]) -> NDArray[np.int32]:
    """The ids, each once and in the order given; equal ids must be neighbours."""
    pages = np.empty(page_id.size, dtype=np.int32)
    num_pages = 0
    for index in range(page_id.size):
        if index == 0 or page_id[index] != page_id[index - 1]:
            pages[num_pages] = page_id[index]
            num_pages += 1
    return pages[:num_pages]


@njit(cache=True)
def count_distinct_slots(
    page_id: NDArray[np.int32],
    begin: NDArray[np.int32],
    end: NDArray[np.int32],
    order: NDArray[np.int64],
) -> int:
    """Slots in the union of the entries' valid ranges; `order` sorts by page, then by begin."""
    num_slots = 0
    page = -1
    covered = 0
    for entry in order:
        if page_id[entry] != page:
            page = page_id[entry]
            covered = 0
        start = max(covered, begin[entry])
        num_slots += max(0, end[entry] - start)
        covered = max(covered, end[entry])
    return num_slots
