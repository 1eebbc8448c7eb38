import pytest

from qvg_engine.block_manager.format import (
    CacheGeometry,
    LayerFormats,
    check_layer_formats,
    get_format,
    page_bytes,
)
from qvg_engine.errors import ConfigError


def pair(keys: str, values: str) -> LayerFormats:
    return LayerFormats(keys=get_format(keys), values=get_format(values))


@pytest.mark.parametrize(
    ("name", "itemsize", "bits"),
    [
        ("dense", 4, 32),
        ("dense", 2, 16),
        ("bf16", 4, 16),
        ("bf16", 2, 16),
        ("qvg", 4, 2 + 8 / 64 + 8 / 128),
        ("qvg-pro", 4, 2 + 8 / 16 + 4 * 8 / 128),
        ("q4", 4, 4 + 8 / 64 + 8 / 128),
        ("q2", 4, 2 + 8 / 64 + 8 / 128),
        ("q1", 4, 1 + 8 / 64 + 2 * 8 / 128),
    ],
)
def test_bits_of_a_row(name: str, itemsize: int, bits: float) -> None:
    assert 8 * get_format(name).row_bytes(128, itemsize) == bits * 128


@pytest.mark.parametrize(("name", "rows"), [("bf16", 0), ("qvg", 7), ("q2", 8), ("q1", 15)])
def test_rows_of_a_codebook_of_seven_centroids(name: str, rows: int) -> None:
    assert get_format(name).codebook_rows(7) == rows


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown page format 'int2'.*dense, bf16"):
        get_format("int2")


def test_page_bytes_count_layers_heads_keys_and_values() -> None:
    # Wan 1.3B in bf16: 184,320 bytes a token over 30 layers of 12 heads of 128.
    geometry = CacheGeometry(num_layers=30, num_kv_heads=12, head_dim=128)
    size = page_bytes(
        geometry, page_size=64, formats=[pair("bf16", "bf16")] * 30, compute_itemsize=4
    )
    assert size == 64 * 184_320


def test_keys_and_values_may_have_different_formats() -> None:
    geometry = CacheGeometry(num_layers=1, num_kv_heads=1, head_dim=64)
    size = page_bytes(geometry, page_size=64, formats=[pair("dense", "bf16")], compute_itemsize=4)
    assert size == 64 * 64 * (4 + 2)


def test_layers_may_have_different_formats() -> None:
    geometry = CacheGeometry(num_layers=2, num_kv_heads=3, head_dim=128)
    formats = [pair("q1", "q2"), pair("q4", "q2")]
    size = page_bytes(geometry, page_size=64, formats=formats, compute_itemsize=4)
    assert size == 64 * 3 * (20 + 35 + 67 + 35)


def test_codebooks_are_in_all_layers_or_in_none() -> None:
    check_layer_formats([pair("q1", "dense"), pair("q4", "bf16")])
    with pytest.raises(ConfigError, match="keys of layer 1 are 'bf16' but those of layer 0 'q2'"):
        check_layer_formats([pair("q2", "q2"), pair("bf16", "q2")])
    with pytest.raises(ConfigError, match="values of layer 2 are 'q1' but those of layer 0 'bf16'"):
        check_layer_formats([pair("q2", "bf16"), pair("q1", "bf16"), pair("q2", "q1")])


@pytest.mark.parametrize("field", ["num_layers", "num_kv_heads", "head_dim"])
def test_geometry_refuses_sizes_below_one(field: str) -> None:
    sizes = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 1, field: 0}
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, got 0"):
        CacheGeometry(**sizes)
