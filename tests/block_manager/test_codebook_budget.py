"""Codebooks never cost more bits than they may, and what is left is used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvg_engine.block_manager.codebook_budget import CodebookBudget
from qvg_engine.errors import ConfigError


@given(st.floats(0.02, 2.0), st.integers(1, 4), st.integers(1, 40), st.integers(0, 1000), st.data())
def test_the_overhead_is_kept(
    overhead: float, max_live: int, min_rows: int, more: int, data: st.DataObject
) -> None:
    budget = CodebookBudget(
        overhead=overhead, max_live=max_live, min_rows=min_rows, max_rows=min_rows + more
    )
    num_tokens = data.draw(st.integers(1, 200_000))
    rows = budget.rows_per_slot(num_tokens)
    assert min_rows <= rows <= min_rows + more
    if rows > min_rows:
        assert budget.bits_per_element(num_tokens) <= overhead
    if rows < min_rows + more:
        assert 16 * max_live * (rows + 1) / num_tokens > overhead


def test_streams_that_share_the_pages_share_the_rows() -> None:
    budget = CodebookBudget(overhead=0.33, max_live=2, min_rows=2, max_rows=257)
    tokens = [3072, 3072, 500, 4000]
    needed = sum(2 * budget.rows_per_slot(count) for count in tokens)
    assert needed <= budget.total_rows(sum(tokens))
    assert budget.rows_per_slot(3072) == 31


@pytest.mark.parametrize(("field", "value"), [("overhead", 0.0), ("max_live", 17)])
def test_settings_are_checked(field: str, value: float) -> None:
    settings = {"overhead": 0.3, "max_live": 2, "min_rows": 1, "max_rows": 9} | {field: value}
    with pytest.raises(ConfigError, match=str(value)):
        CodebookBudget(**settings)  # type: ignore[arg-type]
