import pytest

from qvg_engine.quality.capture import Capture
from qvg_engine.quality.comparison import with_centroids
from qvg_engine.quality.contenders import contender
from qvg_engine.quality.contenders.errors import ContenderErrors, ContenderMeasure
from qvg_engine.quality.contenders.format import FormatContender
from tests.qvg_engine.quality.conftest import drawn_capture

LAYER = 4


@pytest.fixture(scope="module")
def layer(capture: Capture) -> ContenderMeasure:
    return ContenderMeasure(capture, LAYER, seed=5)


@pytest.mark.parametrize("name", ["bf16", "qvg", "q2"])
def test_page_formats_have_the_errors_that_pages_have(layer: ContenderMeasure, name: str) -> None:
    item = contender(name)
    assert isinstance(item, FormatContender)
    found = layer.measure_contender(item, centroids=8)
    expected, stored = layer.measure(with_centroids(item.page_format, 8))
    assert found == ContenderErrors(
        layer=LAYER,
        bits=stored.bits_per_element,
        shared_bits=stored.codebook_bits,
        key_error=expected.key_error,
        value_error=expected.value_error,
        attention_error=found.attention_error,
    )
    assert found.attention_error == pytest.approx(expected.attention_error, rel=1e-4)


def test_the_embedded_model_in_the_order_that_is_expected(layer: ContenderMeasure) -> None:
    names = ("kivi4", "four-2stages-refit", "four", "ternary", "rtn2-asym")
    found = [layer.measure_contender(contender(name), centroids=16) for name in names]
    for field in ("value_error", "attention_error"):
        errors = [getattr(item, field) for item in found]
        assert errors == sorted(errors), (field, errors)
        assert errors[0] > 0
    keys = {name: item.key_error for name, item in zip(names, found, strict=True)}
    assert keys["kivi4"] < keys["four-2stages-refit"] < keys["four"] < keys["ternary"]
    assert keys["ternary"] < keys["rtn2-asym"] < 1


def test_bits_are_the_mean_of_keys_and_values() -> None:
    found = ContenderMeasure(drawn_capture(), 0).measure_contender(contender("kivi2"), centroids=1)
    # 36 tokens of 16 channels: one group of tokens, one group of channels.
    assert found.bits == pytest.approx(2 + (32 / 36 + 32 / 16) / 2)
    assert found.shared_bits == 0
