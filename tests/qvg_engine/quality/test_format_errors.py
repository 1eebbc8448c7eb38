import math

import msgspec
import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.comparison import quality_format, with_centroids
from qvg_engine.quality.figures import BookErrors, FormatErrors, margins
from qvg_engine.quality.format_errors import LayerErrors, squared_error, summarise
from tests.qvg_engine.quality.conftest import drawn_capture

CENTROIDS = 16


@pytest.fixture(scope="module")
def errors(capture: Capture) -> dict[str, FormatErrors]:
    """Every format on one layer of the embedded model."""
    layer = LayerErrors(capture, 4)
    found = {}
    for name in ("dense", "bf16", "q4", "q2", "qvg", "rtn2"):
        page_format = with_centroids(quality_format(name), CENTROIDS)
        found[name] = summarise(page_format, [layer.measure(page_format)])
    return found


def test_dense_pages_lose_nothing(errors: dict[str, FormatErrors]) -> None:
    assert errors["dense"].key_error == errors["dense"].value_error == 0
    assert errors["dense"].attention_error < 1e-6


@pytest.mark.parametrize("field", ["key_error", "value_error", "attention_error"])
def test_more_bits_and_better_rounding_lose_less(
    errors: dict[str, FormatErrors], field: str
) -> None:
    found = [getattr(errors[name], field) for name in ("bf16", "q4", "q2", "qvg", "rtn2")]
    assert found == sorted(found), found
    assert 0 < found[0] < 0.2 * found[1]
    assert found[-1] < 1


def test_rounding_itself_is_what_smoothing_is_compared_with(
    errors: dict[str, FormatErrors],
) -> None:
    """`qvg` without centroids is `rtn2`."""
    qvg, rtn2 = errors["qvg"], errors["rtn2"]
    assert qvg.books[0].key_error_unsmoothed == rtn2.key_error
    assert qvg.books[0].value_error_unsmoothed == rtn2.value_error
    assert qvg.key_smoothing_gain == pytest.approx(rtn2.key_error / qvg.key_error)
    assert qvg.key_error < rtn2.key_error / 2
    assert rtn2.key_smoothing_gain is None


def test_q2_is_six_decibels_better_at_the_same_bits(errors: dict[str, FormatErrors]) -> None:
    (margin,) = margins(tuple(errors.values()))
    assert margin.bits_q2 == margin.bits_qvg
    assert min(margin.key_db, margin.value_db) >= 6
    assert margin.centroids == CENTROIDS


def test_attention_over_wrong_keys_is_wrong() -> None:
    """The error is that of the cached tokens alone: a window of one chunk reads none."""
    page_format = quality_format("rtn2")
    exact = LayerErrors(drawn_capture(window=12), 0).measure(page_format)[0]
    assert exact.attention_error < 1e-6
    assert exact.key_error > 0.05
    assert LayerErrors(drawn_capture(), 0).measure(page_format)[0].attention_error > 0.05


@pytest.mark.parametrize("name", ["dense", "q2"])
def test_eight_bits_add_little_and_nothing_else(capture: Capture, name: str) -> None:
    layer = LayerErrors(capture, 4)
    page_format = with_centroids(quality_format(name), CENTROIDS)
    errors = layer.measure_eight_bit(page_format)
    assert errors.format_error == layer.measure(page_format)[0].attention_error
    assert 0.01 < errors.added_error < 0.025
    assert 1e-3 < errors.added_error_fp16 < 0.4 * errors.added_error
    together = math.hypot(errors.format_error, errors.added_error)
    assert errors.total_error == pytest.approx(together, rel=0.15)


def test_queries_may_have_more_heads() -> None:
    found, _ = LayerErrors(drawn_capture(heads=4), 0).measure(quality_format("dense"))
    assert found.attention_error < 1e-6


def test_a_capture_that_reads_no_cache_is_refused() -> None:
    capture = msgspec.structs.replace(drawn_capture(), chunk_tokens=(36,))
    with pytest.raises(ConfigError, match="1 chunk: give at least 2"):
        LayerErrors(capture, 0)


def test_squared_error_is_relative() -> None:
    rows = torch.tensor([[3.0, 4.0]])
    assert squared_error(torch.tensor([[3.0, 3.0]]), rows) == pytest.approx(1 / 25)


def test_means_are_over_books_and_gains_are_ratios_of_means(capture: Capture) -> None:
    page_format = with_centroids(quality_format("qvg"), 4)
    _, stored = LayerErrors(capture, 1).measure(page_format)

    def book(error: float, plain: float) -> BookErrors:
        return BookErrors(
            video=0,
            layer=0,
            key_error=error,
            value_error=error,
            attention_error=error,
            key_error_unsmoothed=plain,
            value_error_unsmoothed=plain,
        )

    found = summarise(page_format, [(book(0.1, 0.2), stored), (book(0.3, 1.0), stored)])
    assert found.key_error == pytest.approx(0.2)
    assert found.value_smoothing_gain == pytest.approx(3.0)
    assert found.centroids == 4
