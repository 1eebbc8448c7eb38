import math
from typing import Any

import pytest

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.kmeans import KMeansSettings


@pytest.mark.parametrize("iterations", [0, -1, 10_001, 2.0, True, "2", None])
def test_iterations_out_of_range_are_refused(iterations: Any) -> None:
    with pytest.raises(ConfigError, match=r"^iterations is .*: give a whole number from 1 to"):
        KMeansSettings(iterations=iterations)


@pytest.mark.parametrize("tolerance", [-1e-9, 1.1, math.nan, math.inf, True, "0", None])
def test_tolerances_out_of_range_are_refused(tolerance: Any) -> None:
    with pytest.raises(ConfigError, match=r"^tolerance is .*: give a number from 0 to 1"):
        KMeansSettings(iterations=1, tolerance=tolerance)


@pytest.mark.parametrize(
    ("tolerance", "num_changed", "done"),
    [(0, 0, True), (0, 1, False), (1e-4, 0, True), (0.1, 99, True), (0.1, 100, False)],
)
def test_a_head_is_done_when_fewer_ids_changed(
    tolerance: float, num_changed: int, done: bool
) -> None:
    settings = KMeansSettings(iterations=1, tolerance=tolerance)
    assert settings.has_converged(num_changed, num_tokens=1000) is done


@pytest.mark.parametrize(
    ("tolerance", "enough"), [(0, 1), (1e-4, 1), (0.001, 1), (0.0011, 2), (0.1, 100), (1, 1000)]
)
def test_a_head_goes_on_while_enough_ids_change(tolerance: float, enough: int) -> None:
    settings = KMeansSettings(iterations=1, tolerance=tolerance)
    assert settings.enough_changes(1000) == enough
    assert settings.has_converged(enough - 1, num_tokens=1000)
    assert not settings.has_converged(enough, num_tokens=1000)
