"""Joint errors agree with those of parts, and heads add up to their part."""

import msgspec
import pytest

from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import LayerFormats
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.joint_errors import JointErrors
from qvg_engine.quality.part_errors import measure_parts
from tests.qvg_engine.quality.test_part_errors import FORMATS, make_prices

PRICES = make_prices(2)


@pytest.fixture(scope="module")
def found(capture: Capture) -> tuple[JointErrors, Capture]:
    layers = dict(enumerate(capture.layers.values()))
    two_layers = msgspec.structs.replace(capture, layers=layers)
    return JointErrors((two_layers,), PRICES), two_layers


def test_parts_are_those_that_a_calibration_measures(found: tuple[JointErrors, Capture]) -> None:
    joint, capture = found
    measured = measure_parts((capture,), PRICES, CodebookPolicy(), overheads=PRICES.overheads)
    assert joint.errors == pytest.approx(measured, rel=1e-4)
    assert joint.head_errors.shape == (*measured.shape, 2)


def test_errors_nearly_add_up(found: tuple[JointErrors, Capture]) -> None:
    joint, _ = found
    layers = [
        LayerFormats(keys=FORMATS[0], values=FORMATS[1]),
        LayerFormats(keys=FORMATS[2], values=FORMATS[0]),
    ]
    errors = joint.errors[1]
    total = errors[0, 0, 0] + errors[0, 1, 1] + errors[1, 0, 2] + errors[1, 1, 0]
    assert joint.joint_error(layers, 0.33) == pytest.approx((total / 2) ** 0.5, rel=0.1)


def test_heads_of_one_choice_are_the_whole(found: tuple[JointErrors, Capture]) -> None:
    joint, _ = found
    pair = LayerFormats(keys=FORMATS[0], values=FORMATS[1])
    # In order of layers, K and V, heads.
    same = joint.joint_head_error([0, 0, 1, 1, 0, 0, 1, 1], 0.09)
    assert same == pytest.approx(joint.joint_error([pair, pair], 0.09))
    better = joint.joint_head_error([2, 0, 1, 1, 0, 0, 1, 1], 0.09)
    assert better < same
