import pytest
import torch

from qvg_engine.quality.capture import load
from qvg_engine.quality.comparison import quality_format
from qvg_engine.quality.table.kernel_times import measure_times
from tests.qvg_engine.quality.conftest import SHIPPED_CAPTURE


@pytest.mark.parametrize(("name", "has_fit"), [("bf16", False), ("rtn2", False), ("q2", True)])
def test_times_of_a_format(name: str, has_fit: bool) -> None:
    threads = torch.get_num_threads()
    found = measure_times(quality_format(name), load(SHIPPED_CAPTURE), 3, centroids=8, repeats=3)
    assert 0 < found.encode_ms < 1000
    assert 0 < found.decode_ms < 1000
    assert (found.fit_ms > 0) is has_fit
    assert torch.get_num_threads() == threads


def test_sixteen_levels_cost_more_than_rounding_to_bf16() -> None:
    capture = load(SHIPPED_CAPTURE)
    plain, coded = (
        measure_times(quality_format(name), capture, 3, centroids=8, repeats=5)
        for name in ("bf16", "q4")
    )
    assert coded.encode_ms > 3 * plain.encode_ms
