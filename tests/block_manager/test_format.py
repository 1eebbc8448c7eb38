import pytest

from qvg_engine.block_manager.format import CacheGeometry, get_format, page_bytes
from qvg_engine.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "itemsize", "bits"),
    [("dense", 4, 32), ("dense", 2, 16), ("bf16", 4, 16), ("bf16", 2, 16)],
)
def test_bits_per_element(name: str, itemsize: int, bits: int) -> None:
    assert get_format(name).bits_per_element(itemsize) == bits


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown page format 'int2'.*dense, bf16"):
        get_format("int2")


def test_page_bytes_count_layers_heads_keys_and_values() -> None:
    # Wan 1.3B in bf16: 184,320 bytes a token over 30 layers of 12 heads of 128.
    geometry = CacheGeometry(num_layers=30, num_kv_heads=12, head_dim=128)
    bf16 = get_format("bf16")
    size = page_bytes(
        geometry, page_size=64, key_format=bf16, value_format=bf16, compute_itemsize=4
    )
    assert size == 64 * 184_320


def test_keys_and_values_may_have_different_formats() -> None:
    geometry = CacheGeometry(num_layers=1, num_kv_heads=1, head_dim=64)
    size = page_bytes(
        geometry,
        page_size=64,
        key_format=get_format("dense"),
        value_format=get_format("bf16"),
        compute_itemsize=4,
    )
    assert size == 64 * 64 * (4 + 2)


@pytest.mark.parametrize("field", ["num_layers", "num_kv_heads", "head_dim"])
def test_geometry_refuses_sizes_below_one(field: str) -> None:
    sizes = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 1, field: 0}
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, got 0"):
        CacheGeometry(**sizes)
