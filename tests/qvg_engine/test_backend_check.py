"""What "fused" needs, and what is said where it is not there."""

import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.backend_check import check_backend, why_not_fused
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, get_format
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.device import Device
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.paged_attention import LayerPages

CUDA = torch.device("cuda")
needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")


def make_layers(kv_format: str, *, page_size: int = 64, head_dim: int = 128) -> list[LayerPages]:
    page_format = get_format(kv_format)
    layout = CacheLayout(
        geometry=CacheGeometry(num_layers=1, num_kv_heads=1, head_dim=head_dim),
        page_size=page_size,
        formats=(LayerFormats(keys=page_format, values=page_format),),
        compute_itemsize=4,
        codebook_overhead=0.33,
        max_live_codebooks=2,
    )
    table = torch.zeros((1, 1), dtype=torch.int32).numpy() if layout.num_books else None
    store = PageStore(layout, num_pages=1, device="meta", dtype=torch.float32, row_table=table)
    return [store.layer(0)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """CUDA devices are Hopper."""
    device = Device(capability=90, num_multiprocessors=132)
    monkeypatch.setattr("qvg_engine.backend_check.device_of", lambda _: device)
    return monkeypatch


def test_other_backends_take_any_pages() -> None:
    for backend in ("workspace", "reference"):
        check_backend(backend, make_layers("bf16"), device=torch.device("cpu"))


def test_an_engine_on_the_cpu_says_that_fused_needs_a_gpu() -> None:
    config = EngineConfig(attention_backend="fused", kv_format="q2", device="cpu")
    with pytest.raises(ConfigError, match="'fused', which cannot be had: it needs a CUDA device"):
        VideoEngine(config)


@needs_triton
def test_coded_pages_of_whole_tiles_can_have_it(gpu: pytest.MonkeyPatch) -> None:
    check_backend("fused", make_layers("q2"), device=CUDA)


@needs_triton
@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (make_layers("bf16"), "had: it decodes codes, and K is stored without"),
        (make_layers("q2", page_size=48), "page_size is 48, no multiple of a tile's 32 tokens"),
        (make_layers("q2", head_dim=32), "heads have 32 channels, and it takes 64 or 128"),
    ],
    ids=["bf16", "48 tokens a page", "32 channels"],
)
def test_other_pages_cannot(layers: list[LayerPages], reason: str, gpu: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_backend("fused", layers, device=CUDA)


@needs_triton
def test_every_layer_is_looked_at(gpu: pytest.MonkeyPatch) -> None:
    reason = why_not_fused([*make_layers("q2"), *make_layers("bf16")], device=CUDA)
    assert reason is not None
    assert reason.startswith("in layer 1 ")


@needs_triton
def test_where_it_would_spill_it_is_not_offered(gpu: pytest.MonkeyPatch) -> None:
    layers = make_layers("qvg-pro")
    assert why_not_fused(layers, device=CUDA) is None
    ampere = Device(capability=80, num_multiprocessors=108)
    gpu.setattr("qvg_engine.backend_check.device_of", lambda _: ampere)
    assert why_not_fused(layers, device=CUDA) == (
        "the decoding of K would spill registers on sm_80"
    )


def test_without_triton(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr("qvg_engine.backend_check.has_triton", lambda: False)
    with pytest.raises(ConfigError, match="needs Triton: pip install"):
        check_backend("fused", make_layers("q2"), device=CUDA)
