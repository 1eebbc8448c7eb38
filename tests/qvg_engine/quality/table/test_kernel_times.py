import pytest
import torch

from qvg_engine.quality.capture import load
from qvg_engine.quality.comparison import quality_format
from qvg_engine.quality.table.kernel_times import TimeFigures, measure_times
from tests.qvg_engine.quality.conftest import SHIPPED_CAPTURE


def measure(name: str, *, repeats: int) -> TimeFigures:
    return measure_times(
        quality_format(name),
        load(SHIPPED_CAPTURE),
        3,
        centroids=8,
        baseline=quality_format("bf16"),
        repeats=repeats,
    )


def ratio(found: TimeFigures) -> float:
    assert found.decode_ratio is not None
    return found.decode_ratio


@pytest.mark.parametrize(("name", "has_fit"), [("bf16", False), ("rtn2", False), ("q2", True)])
def test_times_of_a_format(name: str, has_fit: bool) -> None:
    threads = torch.get_num_threads()
    found = measure(name, repeats=3)
    assert 0 < found.encode_ms < 1000
    assert 0 < found.decode_ms < 1000
    assert ratio(found) > 0
    assert (found.fit_ms > 0) is has_fit
    assert torch.get_num_threads() == threads


def test_sixteen_levels_cost_more_than_rounding_to_bf16() -> None:
    plain, coded = measure("bf16", repeats=5), measure("q4", repeats=5)
    assert coded.encode_ms > 3 * plain.encode_ms


def test_reading_is_compared_in_turns() -> None:
    """And one with four stages longer than plain rows, which take turns with it."""
    assert 0.5 < ratio(measure("bf16", repeats=25)) < 2
    assert ratio(measure("qvg-pro", repeats=25)) > 1.2


def test_without_a_baseline_there_is_no_ratio() -> None:
    capture = load(SHIPPED_CAPTURE)
    found = measure_times(quality_format("bf16"), capture, 3, centroids=8, baseline=None, repeats=3)
    assert found.decode_ratio is None
    assert found.decode_ms > 0
