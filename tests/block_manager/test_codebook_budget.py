"""Codebooks never cost more bits than they may, and what is left is used."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_budget import CodebookBudget, live_slots
from qvg_engine.block_manager.format import FORMATS, CacheGeometry, LayerFormats
from qvg_engine.errors import ConfigError

CODED = [name for name, page_format in FORMATS.items() if page_format.codec is not None]


@st.composite
def budgets(draw: st.DrawFn) -> CodebookBudget:
    min_rows = draw(st.integers(1, 40))
    return CodebookBudget(
        overhead=draw(st.floats(0.01, 2.0)),
        max_live=draw(st.integers(1, 16)),
        min_rows=min_rows,
        max_rows=min_rows + draw(st.integers(0, 1000)),
        row_bits=draw(st.sampled_from([8, 12, 16, 32])),
    )


@given(budgets(), st.integers(1, 200_000))
def test_the_overhead_is_kept_and_used(budget: CodebookBudget, num_tokens: int) -> None:
    slots, rows = budget.num_slots(num_tokens), budget.rows_per_slot(num_tokens)
    assert 1 <= slots <= budget.max_live
    assert budget.min_rows <= rows <= budget.max_rows
    assert budget.rows_per_set(num_tokens) == slots * rows
    if num_tokens >= budget.least_tokens:
        assert budget.bits_per_element(num_tokens) <= budget.overhead
    else:
        assert (slots, rows) == (1, budget.min_rows)
    if rows < budget.max_rows:
        larger = Fraction(budget.row_bits) * slots * (rows + 1) / num_tokens
        assert larger > budget.overhead, "another row would be within the overhead"
    if slots < budget.max_live:
        more = Fraction(budget.row_bits) * (slots + 1) * budget.min_rows / num_tokens
        assert more > budget.overhead, "another slot would be within the overhead"


@given(budgets())
def test_the_smallest_codebook_alone_may_cost_more(budget: CodebookBudget) -> None:
    least = budget.least_tokens
    assert budget.bits_per_element(least) <= budget.overhead
    if least > 1:
        assert (
            Fraction(budget.row_bits) * budget.rows_per_set(least - 1) / (least - 1)
            > budget.overhead
        )
    assert budget.rows_per_set(0) == 0


@given(budgets(), st.integers(1, 200_000))
def test_rows_of_a_set_tell_its_slots(budget: CodebookBudget, num_tokens: int) -> None:
    rows = budget.rows_per_set(num_tokens)
    slots = live_slots(rows, min_rows=budget.min_rows, max_live=budget.max_live)
    assert slots == budget.num_slots(num_tokens)


@given(
    key=st.sampled_from([*CODED, "bf16", "dense"]),
    value=st.sampled_from(CODED),
    head_dim=st.sampled_from([64, 128]),
    overhead=st.floats(0.01, 16.0),
    max_live=st.integers(1, 16),
    num_tokens=st.integers(1, 100_000),
)
def test_bytes_that_are_reserved_are_within_the_overhead(
    key: str, value: str, head_dim: int, overhead: float, max_live: int, num_tokens: int
) -> None:
    geometry = CacheGeometry(num_layers=3, num_kv_heads=2, head_dim=head_dim)
    layout = CacheLayout(
        geometry=geometry,
        page_size=64,
        formats=(LayerFormats(keys=FORMATS[key], values=FORMATS[value]),),
        compute_itemsize=4,
        codebook_overhead=overhead,
        max_live_codebooks=max_live,
    )
    assert layout.budget is not None
    reserved = layout.budget.rows_per_set(num_tokens) * layout.codebook_row_bytes
    elements = geometry.elements(num_tokens) * layout.books_per_layer
    specs = [spec for name in (key, value) if (spec := FORMATS[name].codec) is not None]
    # A row of the pool is a row of K and of V: the larger of the two smallest codebooks.
    rows = max(spec.stages + spec.channel_widths for spec in specs)
    floor = geometry.elements(1) * rows * sum(spec.centroid_bytes for spec in specs)
    assert reserved <= max(Fraction(overhead) * elements / 8, Fraction(floor))


@given(budgets(), st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_streams_that_share_the_pages_share_the_rows(
    budget: CodebookBudget, tokens: list[int]
) -> None:
    tokens = [max(count, budget.least_tokens) for count in tokens]
    needed = sum(budget.rows_per_set(count) for count in tokens)
    assert needed <= budget.total_rows(sum(tokens))


def test_short_videos_have_fewer_codebooks() -> None:
    budget = CodebookBudget(overhead=0.33, max_live=2, min_rows=2, max_rows=257, row_bits=16)
    sizes = [(budget.num_slots(n), budget.rows_per_slot(n)) for n in (1, 97, 193, 194, 3072)]
    assert sizes == [(1, 2), (1, 2), (1, 3), (2, 2), (2, 31)]
    assert budget.least_tokens == 97


@pytest.mark.parametrize(("field", "value"), [("overhead", 0.0), ("max_live", 17)])
def test_settings_are_checked(field: str, value: float) -> None:
    settings = {"overhead": 0.3, "max_live": 2, "min_rows": 1, "max_rows": 9, "row_bits": 8}
    settings |= {field: value}
    with pytest.raises(ConfigError, match=str(value)):
        CodebookBudget(**settings)  # type: ignore[arg-type]
