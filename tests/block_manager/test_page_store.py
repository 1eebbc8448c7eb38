import numpy as np
import pytest
import torch

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookAction, CodebookPolicy, SpanPlan
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, get_format
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import CodedPages
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import PlainPages

GEOMETRY = CacheGeometry(num_layers=2, num_kv_heads=3, head_dim=64)


def make_layout(
    *,
    page_size: int = 64,
    key_format: str = "dense",
    value_format: str = "dense",
    itemsize: int = 4,
) -> CacheLayout:
    return CacheLayout(
        geometry=GEOMETRY,
        page_size=page_size,
        formats=(LayerFormats(keys=get_format(key_format), values=get_format(value_format)),),
        compute_itemsize=itemsize,
        codebook_overhead=0.33,
        max_live_codebooks=2,
    )


def make_store(
    *,
    page_size: int = 64,
    key_format: str = "dense",
    value_format: str = "dense",
    num_pages: int = 6,
    dtype: torch.dtype = torch.float32,
) -> PageStore:
    layout = make_layout(
        page_size=page_size,
        key_format=key_format,
        value_format=value_format,
        itemsize=dtype.itemsize,
    )
    return PageStore(layout, num_pages=num_pages, device="cpu", dtype=dtype)


def plain(store: PageStore, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensors of K and V of a layer."""
    pages = store.layer(layer)
    assert isinstance(pages.keys, PlainPages)
    assert isinstance(pages.values, PlainPages)
    return pages.keys.data, pages.values.data


def fill_with_nan(store: PageStore) -> None:
    for layer in range(GEOMETRY.num_layers):
        for data in plain(store, layer):
            data.fill_(torch.nan)


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
        data.untyped_storage().nbytes()
        for layer in range(GEOMETRY.num_layers)
        for data in plain(store, layer)
    )
    assert store.num_bytes == allocated
    assert store.layout.num_bytes(store.num_pages) == allocated


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 200])
def test_write_fills_slots_in_order_and_nothing_else(num_tokens: int) -> None:
    store = make_store(value_format="bf16")
    fill_with_nan(store)
    page_ids = np.array([4, 1, 5, 2], dtype=np.int32)
    keys, values = torch.randn(2, num_tokens, 3, 64)
    store.write(1, page_ids, keys=keys, values=values)

    key_data, value_data = plain(store, 1)
    for stored, rows in ((key_data, keys), (value_data, values.bfloat16())):
        slots = stored[page_ids.tolist()].transpose(1, 2).reshape(-1, 3, 64)
        assert torch.equal(slots[:num_tokens], rows)
        assert slots[num_tokens:].isnan().all()
        assert stored[[0, 3]].isnan().all()
    assert all(data.isnan().all() for data in plain(store, 0))


def test_write_takes_rows_that_are_not_contiguous() -> None:
    store = make_store()
    fused = torch.randn(100, 3, 128)
    keys, values = fused.chunk(2, dim=-1)
    store.write(0, np.array([3, 0], dtype=np.int32), keys=keys, values=values)
    key_data, value_data = plain(store, 0)
    assert torch.equal(key_data[3].transpose(0, 1), keys[:64])
    assert torch.equal(value_data[0, :, :36].transpose(0, 1), values[64:])


@pytest.mark.parametrize("fit_tokens", [0, 64, 8192])
def test_a_codebook_is_fitted_to_tokens_before_its_own(fit_tokens: int) -> None:
    """It then knows places that its own span does not visit."""
    store = PageStore(
        make_layout(key_format="q2", value_format="q2"),
        num_pages=6,
        device="cpu",
        dtype=torch.float32,
        row_table=np.arange(14, dtype=np.int32).reshape(2, 7),
        policy=CodebookPolicy(fit_tokens=fit_tokens),
    )
    places = 10 * torch.randn(2, 3, 64)
    before, after = (place + 0.1 * torch.randn(128, 3, 64) for place in places)

    def write(first_page: int, rows: torch.Tensor, slot: int) -> None:
        books = store.layout.num_books
        span = SpanPlan(
            np.full(books, CodebookAction.FIT, np.int8),
            np.full(books, slot, np.int32),
            np.full(books, -1, np.int32),
        )
        seen = PageRuns(*np.array([[0, 1], [0, 64], [0, 0], [64, 64]])) if first_page else None
        pages = np.arange(first_page, first_page + 2, dtype=np.int32)
        store.write(0, pages, keys=rows, values=rows, span=span, seen=seen)

    write(0, before, 0)
    write(2, after, 1)
    keys = store.layer(0).keys
    assert isinstance(keys, CodedPages)
    centroids = keys.codebooks.stage(1, 0)
    for place, is_known in ((places[0], fit_tokens > 0), (places[1], True)):
        nearest = torch.cdist(place[:, None], centroids).amin(dim=2)
        assert ((nearest < 0.1 * place.norm(dim=1, keepdim=True)).all()) == is_known


def test_budget_buys_as_many_pages_as_fit() -> None:
    layout = make_layout()
    size = layout.page_bytes
    for budget, expected in ((size, 1), (10 * size - 1, 9), (10 * size, 10)):
        assert layout.num_pages_for(budget) == expected


def test_budget_below_a_page_is_refused_with_the_numbers() -> None:
    layout = make_layout()
    size = layout.page_bytes
    with pytest.raises(ConfigError, match=f"a page takes {size} bytes.*{size - 1}"):
        layout.num_pages_for(size - 1)


@pytest.mark.parametrize("field", ["page_size", "num_pages"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, got 0"):
        make_store(**{field: 0})  # type: ignore[arg-type]
