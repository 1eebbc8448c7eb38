"""Texts are shared, counted, and padded as the networks were trained."""

import pytest
import torch

from qvg_engine.models.program import TextRows
from qvg_engine.text_pool import MIN_COLLAPSED_ROWS, TextPool


def compute(rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    keys = (rows + 1).reshape(len(rows), 2, -1)
    return [(keys, 2 * keys)]


@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("padding", [0, 1, MIN_COLLAPSED_ROWS - 1, MIN_COLLAPSED_ROWS, 500])
def test_expanded_rows_are_those_of_the_padded_text(num_rows: int, padding: int) -> None:
    rows = torch.randn(num_rows, 8)
    if num_rows + padding == 0:
        return
    entry = TextPool(compute).acquire(TextRows(rows, num_rows + padding))
    padded = torch.cat([rows, torch.zeros(padding, 8)])
    (expected,) = compute(padded)
    keys, values = entry.expanded(0)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


def test_a_collapsed_row_weighs_as_much_as_the_rows_it_stands_for() -> None:
    rows = torch.randn(5, 8)
    entry = TextPool(compute).acquire(TextRows(rows, 512))
    (segment,) = entry.layers
    assert segment.num_tokens == 6
    query = torch.randn(8)
    padded = torch.cat([rows, torch.zeros(507, 8)]) + 1
    expected = torch.softmax(padded @ query, 0) @ padded
    weights = segment.log_weights
    assert weights is not None
    scores = segment.keys.reshape(6, 8) @ query + weights
    torch.testing.assert_close(torch.softmax(scores, 0) @ segment.keys.reshape(6, 8), expected)


def test_equal_texts_are_computed_once_and_freed_with_their_last_user() -> None:
    calls = []

    def counted(rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        calls.append(len(rows))
        return compute(rows)

    pool = TextPool(counted)
    first = pool.acquire(TextRows(torch.ones(2, 8), 4))
    second = pool.acquire(TextRows(torch.ones(2, 8), 4))
    other = pool.acquire(TextRows(torch.ones(2, 8), 5))
    assert first is second
    assert first is not other
    assert calls == [4, 5]
    pool.check_integrity(3)
    pool.release(first)
    assert pool.num_entries == 2
    pool.release(second)
    pool.release(other)
    assert (pool.num_entries, pool.num_bytes) == (0, 0)
