"""What "fused" needs, and what is said where it is not there."""

import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.backend_check import check_backend
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, get_format
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.paged_attention import LayerPages

CUDA = torch.device("cuda")


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
    store = PageStore(layout, num_pages=1, device="cpu", dtype=torch.float32, row_table=table)
    return [store.layer(0)]


def test_other_backends_take_any_pages() -> None:
    for backend in ("workspace", "reference"):
        check_backend(backend, make_layers("bf16"), device=torch.device("cpu"))


def test_an_engine_on_the_cpu_says_that_fused_needs_a_gpu() -> None:
    config = EngineConfig(attention_backend="fused", kv_format="q2", device="cpu")
    with pytest.raises(ConfigError, match="'fused', which needs a CUDA device"):
        VideoEngine(config)


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_coded_pages_of_whole_tiles_can_have_it() -> None:
    check_backend("fused", make_layers("q2"), device=CUDA)


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
@pytest.mark.parametrize(
    "layers",
    [make_layers("bf16"), make_layers("q2", page_size=48), make_layers("q2", head_dim=32)],
    ids=["bf16", "48 tokens a page", "32 channels"],
)
def test_other_pages_cannot(layers: list[LayerPages]) -> None:
    with pytest.raises(ConfigError, match="layer 0 cannot have"):
        check_backend("fused", layers, device=CUDA)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvg_engine.backend_check.has_triton", lambda: False)
    with pytest.raises(ConfigError, match="needs Triton: pip install"):
        check_backend("fused", make_layers("q2"), device=CUDA)
