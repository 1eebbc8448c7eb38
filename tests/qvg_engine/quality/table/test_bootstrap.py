import numpy as np
import pytest

from qvg_engine.quality.table.bootstrap import (
    difference_interval,
    mean_interval,
    ratio_interval,
)


def test_figures_that_do_not_differ_have_no_width() -> None:
    found = mean_interval([[2.0, 2.0], [2.0]])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_the_mean_is_of_all_members() -> None:
    found = mean_interval([[1.0, 2.0, 3.0], [10.0]])
    assert found.value == 4.0
    assert found.low < 4 < found.high


def test_independent_members_have_the_width_of_normal_theory() -> None:
    rng = np.random.default_rng(0)
    found = mean_interval(rng.normal(5, 1, size=(400, 1)).tolist())
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_members_of_a_group_do_not_count_as_independent() -> None:
    """Four groups, each of 100 equal members: four figures, not 400."""
    groups = [[float(value)] * 100 for value in (1, 2, 3, 4)]
    assert mean_interval(groups).high - mean_interval(groups).low > 1.5
    members = [[float(value) for value in (1, 2, 3, 4)] * 100]
    assert mean_interval(members).high - mean_interval(members).low < 0.5


def test_intervals_cover_the_truth() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        centres = rng.normal(3, 1, size=12)
        groups = [list(rng.normal(centre, 0.5, size=4)) for centre in centres]
        found = mean_interval(groups, seed=seed)
        covered += found.low <= 3 <= found.high
    assert 84 <= covered <= 99


def test_what_both_have_in_common_does_not_widen_a_ratio() -> None:
    rng = np.random.default_rng(1)
    baseline = [list(np.exp(rng.normal(0, 2, size=3))) for _ in range(5)]
    tenth = [[value / 10 for value in group] for group in baseline]
    found = ratio_interval(tenth, baseline)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    other = ratio_interval([list(np.exp(rng.normal(0, 2, size=3))) for _ in range(5)], baseline)
    assert other.high > 2 * other.low


def test_a_difference_is_paired() -> None:
    found = difference_interval([[1.0, 12.0], [30.0]], [[0.0, 10.0], [30.0]])
    assert (found.value, found.low) == (1.0, 0.0)
    assert 1.4 < found.high < 2.0


def test_the_same_seed_gives_the_same_interval() -> None:
    groups = [[1.0, 4.0], [2.0, 8.0]]
    assert mean_interval(groups, seed=3) == mean_interval(groups, seed=3)
