import numpy as np
import pytest
import torch

from qvg_engine.block_manager.format import CacheGeometry, get_format
from qvg_engine.block_manager.page_store import PageStore, num_pages_for
from qvg_engine.errors import ConfigError

GEOMETRY = CacheGeometry(num_layers=2, num_kv_heads=3, head_dim=64)


def make_store(
    *,
    page_size: int = 64,
    key_format: str = "dense",
    value_format: str = "dense",
    num_pages: int = 6,
    dtype: torch.dtype = torch.float32,
) -> PageStore:
    return PageStore(
        geometry=GEOMETRY,
        page_size=page_size,
        key_format=get_format(key_format),
        value_format=get_format(value_format),
        num_pages=num_pages,
        device="cpu",
        dtype=dtype,
    )


def fill_with_nan(store: PageStore) -> None:
    for layer in range(GEOMETRY.num_layers):
        store.layer(layer).keys.data.fill_(torch.nan)
        store.layer(layer).values.data.fill_(torch.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page_size", [64, 128])
@pytest.mark.parametrize(
    ("key_format", "value_format"), [("dense", "dense"), ("bf16", "bf16"), ("dense", "bf16")]
)
def test_counted_bytes_are_the_allocated_bytes(
    dtype: torch.dtype, page_size: int, key_format: str, value_format: str
) -> None:
    store = make_store(
        page_size=page_size, key_format=key_format, value_format=value_format, dtype=dtype
    )
    allocated = sum(
        pages.data.untyped_storage().nbytes()
        for layer in range(GEOMETRY.num_layers)
        for pages in (store.layer(layer).keys, store.layer(layer).values)
    )
    assert store.num_bytes == allocated
    assert store.bytes_per_page * store.num_pages == allocated


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 200])
def test_write_fills_slots_in_order_and_nothing_else(num_tokens: int) -> None:
    store = make_store(value_format="bf16")
    fill_with_nan(store)
    page_ids = np.array([4, 1, 5, 2], dtype=np.int32)
    keys, values = torch.randn(2, num_tokens, 3, 64)
    store.write(1, page_ids, keys=keys, values=values)

    pages = store.layer(1)
    for stored, rows in ((pages.keys.data, keys), (pages.values.data, values.bfloat16())):
        slots = stored[page_ids.tolist()].transpose(1, 2).reshape(-1, 3, 64)
        assert torch.equal(slots[:num_tokens], rows)
        assert slots[num_tokens:].isnan().all()
        assert stored[[0, 3]].isnan().all()
    assert store.layer(0).keys.data.isnan().all()
    assert store.layer(0).values.data.isnan().all()


def test_write_takes_rows_that_are_not_contiguous() -> None:
    store = make_store()
    fused = torch.randn(100, 3, 128)
    keys, values = fused.chunk(2, dim=-1)
    store.write(0, np.array([3, 0], dtype=np.int32), keys=keys, values=values)
    assert torch.equal(store.layer(0).keys.data[3].transpose(0, 1), keys[:64])
    assert torch.equal(store.layer(0).values.data[0, :, :36].transpose(0, 1), values[64:])


def test_budget_buys_as_many_pages_as_fit() -> None:
    size = make_store().bytes_per_page
    for budget, expected in ((size, 1), (10 * size - 1, 9), (10 * size, 10)):
        pages = num_pages_for(
            budget,
            geometry=GEOMETRY,
            page_size=64,
            key_format=get_format("dense"),
            value_format=get_format("dense"),
            dtype=torch.float32,
        )
        assert pages == expected


def test_budget_below_a_page_is_refused_with_the_numbers() -> None:
    size = make_store().bytes_per_page
    with pytest.raises(ConfigError, match=f"a page takes {size} bytes.*{size - 1}"):
        num_pages_for(
            size - 1,
            geometry=GEOMETRY,
            page_size=64,
            key_format=get_format("dense"),
            value_format=get_format("dense"),
            dtype=torch.float32,
        )


@pytest.mark.parametrize("field", ["page_size", "num_pages"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, got 0"):
        make_store(**{field: 0})  # type: ignore[arg-type]
