"""Block tables: numbering, valid ranges, cuts, and snapshots that never change."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from qvg_engine.block_manager.block_table import BlockTable

PAGE_SIZE = 4


def ids(*page_ids: int) -> NDArray[np.int32]:
    return np.array(page_ids, dtype=np.int32)


def rows(table: BlockTable, upto_token: int | None = None) -> list[tuple[int, int, int, int]]:
    """(page_id, first_token, begin, end) of every entry."""
    return [tuple(row) for row in table.entries(upto_token).packed.tolist()]


def filled() -> BlockTable:
    """Six tokens on pages 7 and 8, nine on pages 3, 2 and 1."""
    table = BlockTable(PAGE_SIZE)
    table.append(ids(7, 8), 6)
    table.append(ids(3, 2, 1), 9)
    return table


def test_a_commit_starts_a_page_and_ends_in_a_part_full_one() -> None:
    assert rows(filled()) == [
        (7, 0, 0, 4),
        (8, 4, 0, 2),
        (3, 6, 0, 4),
        (2, 10, 0, 4),
        (1, 14, 0, 1),
    ]


def test_columns_are_contiguous_and_typed() -> None:
    entries = filled().entries()
    columns = (entries.page_id, entries.first_token, entries.begin, entries.end)
    assert [column.dtype for column in columns] == [np.int32, np.int64, np.int32, np.int32]
    assert all(column.flags.c_contiguous and column.shape == (5,) for column in columns)
    assert entries.packed.dtype == np.int32
    assert entries.packed.flags.c_contiguous


def test_tokens_are_counted() -> None:
    table = filled()
    assert (table.num_tokens, table.next_token, table.entries().num_tokens) == (15, 15, 15)
    assert len(table.entries()) == 5


def test_the_pages_must_fit_the_tokens() -> None:
    with pytest.raises(AssertionError, match="9 tokens do not fill 2 pages of 4"):
        BlockTable(PAGE_SIZE).append(ids(1, 2), 9)


def test_eviction_drops_pages_outside_the_window_and_cuts_those_at_its_edges() -> None:
    table = filled()
    assert table.evict(sink_tokens=2, window_start=11).tolist() == [8, 3]
    assert rows(table) == [(7, 0, 0, 2), (2, 10, 1, 4), (1, 14, 0, 1)]
    table.check_integrity()


def test_eviction_renumbers_nothing() -> None:
    table = filled()
    table.evict(sink_tokens=0, window_start=10)
    assert (table.num_tokens, table.next_token) == (5, 15)
    table.append(ids(9), 3)
    assert rows(table) == [(2, 10, 0, 4), (1, 14, 0, 1), (9, 15, 0, 3)]


def test_a_page_cut_in_its_middle_stays_one_page_with_two_entries() -> None:
    table = filled()
    assert table.evict(sink_tokens=7, window_start=9).size == 0
    assert rows(table)[2:4] == [(3, 6, 0, 1), (3, 6, 3, 4)]
    assert table.page_ids.tolist() == [7, 8, 3, 2, 1]
    assert table.num_tokens == 13
    table.check_integrity()


def test_a_page_with_two_entries_is_dropped_with_its_last_one() -> None:
    table = filled()
    table.evict(sink_tokens=7, window_start=9)
    assert table.evict(sink_tokens=7, window_start=10).size == 0
    assert table.evict(sink_tokens=6, window_start=10).tolist() == [3]


def test_a_page_keeps_its_place_with_either_of_two_entries() -> None:
    table = filled()
    table.evict(sink_tokens=7, window_start=9)
    assert table.evict(sink_tokens=6, window_start=8).size == 0
    assert rows(table)[2:4] == [(3, 6, 3, 4), (2, 10, 0, 4)]


def test_a_page_with_two_entries_is_dropped_once() -> None:
    table = filled()
    table.evict(sink_tokens=7, window_start=9)
    assert table.truncate(5).tolist() == [3, 2, 1]
    assert rows(table) == [(7, 0, 0, 4), (8, 4, 0, 1)]


def test_what_was_evicted_does_not_come_back() -> None:
    table = filled()
    table.evict(sink_tokens=2, window_start=12)
    table.evict(sink_tokens=0, window_start=11)
    assert rows(table) == [(2, 10, 2, 4), (1, 14, 0, 1)]
    assert (table.num_tokens, rows(table, 11)) == (3, [])


def test_a_window_that_starts_in_the_sink_evicts_nothing() -> None:
    table = filled()
    before = table.entries()
    assert table.evict(sink_tokens=5, window_start=5).size == 0
    assert table.evict(sink_tokens=5, window_start=-3).size == 0
    assert table.entries() is before


def test_a_window_behind_the_end_leaves_the_sink() -> None:
    table = filled()
    assert table.evict(sink_tokens=3, window_start=99).tolist() == [8, 3, 2, 1]
    assert (rows(table), table.next_token) == ([(7, 0, 0, 3)], 15)


def test_truncation_numbers_on_from_the_cut() -> None:
    table = filled()
    assert table.truncate(7).tolist() == [2, 1]
    assert (table.next_token, table.num_tokens) == (7, 7)
    table.append(ids(5), 2)
    assert rows(table) == [(7, 0, 0, 4), (8, 4, 0, 2), (3, 6, 0, 1), (5, 7, 0, 2)]
    table.check_integrity()


def test_truncation_inside_the_evicted_range_numbers_on_from_the_cut() -> None:
    table = filled()
    table.evict(sink_tokens=2, window_start=11)
    assert table.truncate(6).tolist() == [2, 1]
    assert (rows(table), table.next_token) == ([(7, 0, 0, 2)], 6)


def test_truncation_behind_the_end_is_refused() -> None:
    with pytest.raises(AssertionError, match="cannot cut at token 16: the branch has 15"):
        filled().truncate(16)


@pytest.mark.parametrize("upto_token", range(17))
def test_reading_a_part_ends_before_the_token(upto_token: int) -> None:
    table = filled()
    table.evict(sink_tokens=1, window_start=3)
    tokens = [
        first_token + slot
        for _, first_token, begin, end in rows(table, upto_token)
        for slot in range(begin, end)
    ]
    assert tokens == [t for t in (0, *range(3, 15)) if t < upto_token]


def test_rows_are_the_columns() -> None:
    table = filled()
    table.evict(sink_tokens=7, window_start=9)
    entries = table.entries()
    columns = (entries.page_id, entries.first_token, entries.begin, entries.end)
    assert rows(table) == list(zip(*(column.tolist() for column in columns), strict=True))


def test_token_numbers_end_where_rows_cannot_hold_them() -> None:
    table = BlockTable(2**30)
    table.append(ids(1), 2**30)
    with pytest.raises(AssertionError, match="32 bits"):
        table.append(ids(2), 2**30)


def test_a_snapshot_is_kept_until_the_table_changes() -> None:
    table = filled()
    snapshot = table.entries()
    assert table.entries() is snapshot
    assert table.entries(15) is snapshot
    table.append(ids(9), 1)
    assert table.entries() is not snapshot


def test_a_snapshot_never_changes() -> None:
    table = filled()
    taken = []
    for change in (
        lambda: table.append(ids(20), 1),
        lambda: table.evict(1, 5),
        lambda: table.append(ids(21), 4),
        lambda: table.truncate(13),
        lambda: table.append(ids(*range(30, 90)), 240),
        lambda: table.truncate(2),
        lambda: table.append(ids(22), 3),
    ):
        taken.append((table.entries(), rows(table)))
        taken.append((table.entries(3), rows(table, 3)))
        change()
    for snapshot, expected in taken:
        columns = (snapshot.page_id, snapshot.first_token, snapshot.begin, snapshot.end)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_a_copy_goes_its_own_way() -> None:
    table = filled()
    copy = table.copy()
    table.append(ids(9), 2)
    copy.append(ids(10), 3)
    assert rows(table)[-1] == (9, 15, 0, 2)
    assert rows(copy)[-1] == (10, 15, 0, 3)
    assert rows(table)[:-1] == rows(copy)[:-1]


def test_a_table_is_as_before_when_its_successor_is_dropped() -> None:
    table = filled()
    before = rows(table)
    successor, dropped = table.with_commit(ids(20, 21), 5, at_token=9)
    assert dropped.tolist() == [2, 1]
    assert rows(successor)[2:] == [(3, 6, 0, 3), (20, 9, 0, 4), (21, 13, 0, 1)]
    table.with_commit(ids(20, 21), 5, at_token=None)
    assert (rows(table), table.next_token, table.num_tokens) == (before, 15, 15)
    table.append(ids(22), 1)
    assert rows(table) == [*before, (22, 15, 0, 1)]


def break_range(table: BlockTable) -> None:
    table._columns[3][1] = PAGE_SIZE + 1


def break_empty(table: BlockTable) -> None:
    table._columns[2][1] = table._columns[3][1]


def break_order(table: BlockTable) -> None:
    table._columns[1][2] -= 1


def break_numbering(table: BlockTable) -> None:
    table._next_token -= 1


def break_pages(table: BlockTable) -> None:
    table._columns[0][4] = table._columns[4][4, 0] = 7


def break_neighbours(table: BlockTable) -> None:
    table._columns[0][1] = table._columns[4][1, 0] = 7


def break_rows(table: BlockTable) -> None:
    table._columns[4][2, 3] -= 1


def break_count(table: BlockTable) -> None:
    table._num_tokens += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_range, r"entry 1 \(page 8\) has slots 0 to 5"),
        (break_empty, r"entry 1 \(page 8\) has slots 2 to 2"),
        (break_order, "entries overlap"),
        (break_numbering, "a token >= 14 is visible"),
        (break_pages, "two places"),
        (break_neighbours, "two places"),
        (break_rows, "the packed rows are not the columns"),
        (break_count, "15 tokens are visible, 16 are counted"),
    ],
)
def test_the_check_finds_damage(damage: Callable[[BlockTable], None], message: str) -> None:
    table = filled()
    table.check_integrity()
    damage(table)
    with pytest.raises(AssertionError, match=message):
        table.check_integrity()
