import math

import msgspec
import pytest
import torch
from torch import Tensor

from qvg_engine.errors import ConfigError, NonFiniteError
from qvg_engine.quality.capture import Capture, load
from qvg_engine.quality.comparison import with_centroids
from qvg_engine.quality.contender import RoundTrip
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.contenders.registry import contender
from qvg_engine.quality.format_errors import LayerErrors, squared_error
from qvg_engine.quality.table.books import LayerBooks
from tests.qvg_engine.quality.conftest import SHIPPED_CAPTURE, drawn_capture


@pytest.fixture(scope="module")
def shipped() -> Capture:
    return load(SHIPPED_CAPTURE)


@pytest.fixture(scope="module")
def books(shipped: Capture) -> LayerBooks:
    return LayerBooks(shipped, 3, video=0, seed=0, attend_every=1)


class Scaled:
    """Reads back K times 0.9 and V times 0.8, at different bits; the second chunk as it is."""

    name = "scaled"

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        read = rows.clone()
        read[:12] *= 0.9 if is_key else 0.8
        return RoundTrip(read, 2.0 if is_key else 3.0, 0.25)


def test_bf16_loses_nothing_of_bf16_rows(books: LayerBooks) -> None:
    found = books.measure(contender("bf16"), centroids=4)
    assert (found.keys.error, found.values.error, found.attention_error) == (0, 0, 0)
    assert found.num_bytes == 2 * 2 * 384 * 128


@pytest.mark.parametrize("name", ["q2", "kivi2"])
def test_errors_are_those_of_the_rows(shipped: Capture, books: LayerBooks, name: str) -> None:
    item, layer = contender(name), shipped.layers[3]
    found = books.measure(item, centroids=8)
    for figures, rows, is_key in (
        (found.keys, layer.keys, True),
        (found.values, layer.values, False),
    ):
        read = item.round_trip(rows.float(), is_key=is_key, seed=6 + (not is_key), centroids=8)
        assert figures.error == pytest.approx(squared_error(read.rows, rows), rel=1e-6)
        assert (figures.bits, figures.shared_bits) == (read.bits, read.shared_bits)
        chunk = squared_error(read.rows[192:], rows[192:])
        assert figures.chunk_errors[1] == pytest.approx(chunk, rel=1e-3)


def test_the_error_of_attention_is_that_of_pages(shipped: Capture, books: LayerBooks) -> None:
    item = contender("rtn2")
    page_format = item.page_format  # type: ignore[attr-defined]
    figures, _ = LayerErrors(shipped, 3).measure(page_format)
    found = books.measure(item, centroids=8)
    assert found.attention_error == pytest.approx(figures.attention_error, rel=1e-4)
    assert found.chunks == (1,)
    assert found.attention_chunk_errors == pytest.approx((found.attention_error,), rel=1e-3)


def test_known_errors_by_chunk() -> None:
    found = LayerBooks(drawn_capture(), 0, video=0, seed=0, attend_every=1).measure(
        Scaled(), centroids=1
    )
    assert found.keys.chunk_errors == pytest.approx((0.01, 0, 0), rel=1e-3)
    assert found.values.chunk_errors == pytest.approx((0.04, 0, 0), rel=1e-3)
    assert 0.01 / 4 < found.keys.error < 0.01 / 2
    assert found.chunks == (1, 2)
    first, second = found.attention_chunk_errors
    assert first > second > 0, "of what the third chunk reads, half is as it was"
    assert second < found.attention_error < first
    assert found.num_bytes == pytest.approx((2.25 + 3.25) * 36 * 2 * 16 / 8)


def test_fewer_chunks_attend_where_that_is_asked() -> None:
    books = LayerBooks(drawn_capture(), 0, video=0, seed=0, attend_every=2)
    assert books.measure(Scaled(), centroids=1).chunks == (1,)


def test_a_single_chunk_is_refused() -> None:
    capture = msgspec.structs.replace(drawn_capture(), chunk_tokens=(36,))
    with pytest.raises(ConfigError, match="the capture has 1 chunk: give at least 2"):
        LayerBooks(capture, 0, video=0, seed=0, attend_every=1)


def test_what_is_not_finite_is_an_error() -> None:
    class Broken:
        name = "broken"

        def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
            return RoundTrip(rows if is_key else torch.full_like(rows, math.nan), 1.0, 0.0)

    books = LayerBooks(drawn_capture(), 0, video=0, seed=0, attend_every=1)
    with pytest.raises(NonFiniteError, match="broken: V of layer 0"):
        books.measure(Broken(), centroids=1)


@pytest.mark.parametrize("name", ["bf16", "qvg", "q2"])
def test_page_formats_have_the_errors_that_pages_have(capture: Capture, name: str) -> None:
    item = contender(name)
    assert isinstance(item, FormatContender)
    found = LayerBooks(capture, 4, video=0, seed=5, attend_every=1).measure(item, centroids=8)
    page_format = with_centroids(item.page_format, 8)
    expected, stored = LayerErrors(capture, 4, seed=5).measure(page_format)
    assert found.keys.bits == found.values.bits == stored.bits_per_element
    assert found.keys.shared_bits == found.values.shared_bits == stored.codebook_bits
    assert found.keys.error == expected.key_error
    assert found.values.error == expected.value_error
    assert found.attention_error == pytest.approx(expected.attention_error, rel=1e-4)


def test_the_embedded_model_in_the_order_that_is_expected(capture: Capture) -> None:
    layer = LayerBooks(capture, 4, video=0, seed=5, attend_every=1)
    names = ("kivi4", "four-2stages-refit", "four", "ternary", "rtn2-asym")
    found = [layer.measure(contender(name), centroids=16) for name in names]
    for errors in ([item.values.error for item in found], [item.attention_error for item in found]):
        assert errors == sorted(errors)
        assert errors[0] > 0
    keys = {name: item.keys.error for name, item in zip(names, found, strict=True)}
    assert keys["kivi4"] < keys["four-2stages-refit"] < keys["four"] < keys["ternary"]
    assert keys["ternary"] < keys["rtn2-asym"] < 1


def test_keys_and_values_have_bits_of_their_own() -> None:
    layer = LayerBooks(drawn_capture(), 0, video=0, seed=0, attend_every=1)
    found = layer.measure(contender("kivi2"), centroids=1)
    # 36 tokens of 16 channels: one group of tokens, one group of channels.
    assert found.keys.bits == pytest.approx(2 + 32 / 36)
    assert found.values.bits == pytest.approx(2 + 32 / 16)
    assert found.keys.shared_bits == found.values.shared_bits == 0
