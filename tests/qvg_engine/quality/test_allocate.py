"""The choice is the best there is, never too dear, and never worse for more."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvg_engine.quality.allocate import Choice, allocate

CHOICES = st.builds(Choice, cost=st.integers(0, 9), error=st.floats(0, 100, width=32))
PARTS = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=5)


def total(parts: list[list[Choice]], chosen: tuple[int, ...]) -> tuple[int, float]:
    taken = [part[index] for part, index in zip(parts, chosen, strict=True)]
    return sum(item.cost for item in taken), sum(item.error for item in taken)


@given(PARTS, st.integers(0, 50))
def test_nothing_is_better(parts: list[list[Choice]], capacity: int) -> None:
    all_choices = product(*(range(len(part)) for part in parts))
    allowed = [
        error for cost, error in (total(parts, item) for item in all_choices) if cost <= capacity
    ]
    chosen = allocate(parts, capacity)
    if not allowed:
        assert chosen is None
        return
    assert chosen is not None
    cost, error = total(parts, chosen)
    assert cost <= capacity
    assert error == pytest.approx(min(allowed))


@given(PARTS, st.integers(0, 40))
def test_more_is_never_worse(parts: list[list[Choice]], capacity: int) -> None:
    errors = []
    for more in range(capacity, capacity + 10):
        chosen = allocate(parts, more)
        errors.append(float("inf") if chosen is None else total(parts, chosen)[1])
    assert errors == sorted(errors, reverse=True)


def test_as_many_parts_as_a_large_model_has() -> None:
    """The convex case, which a greedy choice solves, too: by the gain for each unit."""
    parts = [
        [Choice(18, 16.0 * weight), Choice(35, 4.0 * weight), Choice(67, weight / 16)]
        for weight in range(1, 61)
    ]
    chosen = allocate(parts, 60 * 35)
    assert chosen is not None
    assert total(parts, chosen)[0] <= 60 * 35
    assert list(chosen) == sorted(chosen), "what weighs more gets more"
    assert set(chosen) == {0, 1, 2}


def test_nothing_to_choose_costs_nothing() -> None:
    assert allocate([], 0) == ()
    assert allocate([[Choice(3, 1.0)]], 2) is None
