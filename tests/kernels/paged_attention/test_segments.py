import numpy as np
import pytest
import torch

from qvg_engine.kernels.paged_attention import DenseSegment, PageRuns


def make_runs() -> PageRuns:
    columns = ([7, 3, 9], [0, 64, 320], [0, 10, 2], [64, 64, 5])
    return PageRuns(*(np.array(column) for column in columns))


def test_slots_are_listed_in_order() -> None:
    page, slot, position = make_runs().slots()
    assert page.tolist() == [7] * 64 + [3] * 54 + [9] * 3
    assert slot.tolist() == [*range(64), *range(10, 64), 2, 3, 4]
    assert position.tolist() == [*range(64), *range(74, 128), 322, 323, 324]


def test_an_empty_run_has_no_slots() -> None:
    empty = PageRuns(*(np.empty(0, np.int64) for _ in range(4)))
    assert empty.num_tokens == 0
    assert empty.largest_position == 0
    assert [column.tolist() for column in empty.slots()] == [[], [], []]


def test_a_gap_between_pages_does_not_hide_the_largest_position() -> None:
    assert make_runs().largest_position == 324


@pytest.mark.parametrize(("start", "stop"), [(0, 121), (0, 1), (63, 65), (64, 118), (120, 121)])
def test_a_cut_is_a_slice_of_the_slots(start: int, stop: int) -> None:
    runs = make_runs()
    cut = runs.cut(start, stop)
    assert cut.num_tokens == stop - start
    for part, whole in zip(cut.slots(), runs.slots(), strict=True):
        assert part.tolist() == whole[start:stop].tolist()


def test_columns_of_any_integer_dtype_are_taken() -> None:
    class Columns:
        page_id = np.array([1], np.int32)
        first_token = np.array([128], np.int64)
        begin = np.array([0], np.int32)
        end = np.array([9], np.int32)

    runs = PageRuns.from_columns(Columns())
    assert {column.dtype for column in (runs.page_id, runs.begin, runs.end)} == {np.dtype(np.int64)}
    assert runs.largest_position == 136


def test_dense_cut_takes_positions_and_weights_along() -> None:
    rows = torch.randn(10, 2, 64)
    segment = DenseSegment(
        keys=rows, values=rows + 1, positions=np.arange(10) + 5, log_weights=torch.arange(10.0)
    )
    cut = segment.cut(3, 7)
    assert cut.positions is not None
    assert cut.log_weights is not None
    assert cut.positions.tolist() == [8, 9, 10, 11]
    assert cut.log_weights.tolist() == [3, 4, 5, 6]
    assert torch.equal(cut.values, rows[3:7] + 1)
