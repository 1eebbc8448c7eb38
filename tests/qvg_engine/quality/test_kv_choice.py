"""The choice keeps to its bits, says what it predicts, and more bits never predict more error."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvg_engine.quality.kv_choice import affordable_overheads, choose_formats
from tests.qvg_engine.quality.test_kv_prices import NUM_LAYERS, make_prices, size_of

PRICES = make_prices(size_of(3072))
SHAPE = (len(PRICES.overheads), NUM_LAYERS, 2, len(PRICES.candidates))


@st.composite
def budgets(draw: st.DrawFn) -> Fraction:
    low, high = PRICES.least_bits, PRICES.most_bits
    return low + (high - low) * Fraction(draw(st.floats(0, 1)))


@given(st.integers(0, 2**32 - 1), budgets(), budgets())
def test_bits_are_kept_and_more_never_predict_more_error(
    seed: int, one: Fraction, other: Fraction
) -> None:
    errors = np.random.default_rng(seed).exponential(size=SHAPE)
    less, more = sorted((one, other))
    first, second = choose_formats(PRICES, errors, less), choose_formats(PRICES, errors, more)
    assert first.bits <= less
    assert second.bits <= more
    assert second.predicted_error <= first.predicted_error


def test_the_prediction_is_the_root_of_the_sum() -> None:
    errors = np.random.default_rng(0).exponential(size=SHAPE)
    choice = choose_formats(PRICES, errors, Fraction(2))
    overhead = choice.allocation.codebook_overhead
    assert overhead is not None
    found = errors[PRICES.overheads.index(overhead)]
    names = [item.name for item in PRICES.candidates]
    total = sum(
        found[layer, part, names.index(item.name)]
        for layer, pair in enumerate(choice.allocation.layers)
        for part, item in enumerate((pair.keys, pair.values))
    )
    assert choice.predicted_error == pytest.approx(math.sqrt(total))
    assert choice.bits == float(PRICES.bits(choice.allocation.layers, overhead))


def test_the_part_that_suffers_most_gets_the_bits() -> None:
    errors = np.empty(SHAPE)
    # As much less as bits are more, everywhere; V of layer 1 suffers most, then K of layer 2.
    errors[:] = 4.0 ** -(np.array(PRICES.row_bytes) / 16)
    errors[:, 1, 1] *= 1000
    errors[:, 2, 0] *= 100
    layers = choose_formats(PRICES, errors, Fraction(2)).allocation.layers
    sizes = {
        (layer, part): item.row_bytes(128, 4)
        for layer, pair in enumerate(layers)
        for part, item in (("V", pair.values), ("K", pair.keys))
    }
    ranked = sorted(sizes, key=sizes.__getitem__, reverse=True)
    assert ranked[:2] == [(1, "V"), (2, "K")], sizes
    assert sizes[1, "V"] > sizes[2, "K"] or sizes[2, "K"] == 67


def test_few_bits_leave_few_for_codebooks() -> None:
    assert affordable_overheads(PRICES, PRICES.least_bits) == (0.065,)
    assert affordable_overheads(PRICES, PRICES.most_bits) == PRICES.overheads
    errors = np.full(SHAPE, np.nan)
    errors[0] = 1.0
    # What cannot be afforded need not be measured.
    choice = choose_formats(PRICES, errors, PRICES.least_bits)
    assert choice.allocation.codebook_overhead == 0.065
    assert {pair.keys.name for pair in choice.allocation.layers} == {"q1-lean"}
    with pytest.raises(AssertionError, match="was not measured"):
        choose_formats(PRICES, errors, PRICES.most_bits)
