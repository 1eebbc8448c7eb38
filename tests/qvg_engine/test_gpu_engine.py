"""Whole engines whose every kernel is Triton's, interpreted, against the CPU's kernels.

Both compute in fp32, and sums in another order. Where that moves a number over the edge between
two codes or centroids, a token's code differs, and the latents with it by a little: rare enough
that in the median of all chunks nothing is seen of it, and never as much as a wrong page, position
or codebook would change. Encoding with a trellis takes many seconds a span in the interpreter: one
test does it, the others leave it to the CPU's kernel and check the rest.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine import VideoEngine, VideoRequest
from qvg_engine.kernels import gpu
from qvg_engine.models.wan.config import WanConfig
from tests.conftest import Toy, make_network

if not gpu.has_triton() or not gpu.is_interpreted():
    pytest.skip("Triton's interpreter is not there", allow_module_level=True)

from qvg_engine.kernels.codec import cpu_store, gpu_store

# Where a scale is 0 a kernel divides by it, and does not use what comes out.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")

SAME = 1e-5
ANOTHER_CODE = 0.02
# The interpreter cuts fp32 off to bf16, by up to 2**-8, where a GPU and the CPU's kernels round.
CUT_OFF = 3e-3
# Several sizes, so that no two streams agree on pages and windows; frames of 4 to 12 tokens.
SIZES = ((4, 6), (4, 4), (8, 6), (4, 4), (4, 6), (6, 6), (4, 8), (2, 4))
LENGTHS = (3, 2, 3, 1, 2, 3, 1, 2)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def toy(num_heads: int) -> Toy:
    config = WanConfig(
        dim=64 * num_heads,
        ffn_dim=64,
        num_heads=num_heads,
        num_layers=1,
        in_dim=4,
        out_dim=4,
        text_dim=8,
        freq_dim=16,
    )
    return Toy(make_network(config=config))


def videos(
    num_streams: int,
    *,
    on_gpu: bool,
    strategy: str = "workspace",
    num_heads: int = 2,
    chunks: int | None = None,
    **config: Any,
) -> dict[str, Tensor]:
    """Latents [chunks, ...] of streams that begin a step after the other."""
    with gpu.cpu_as_gpu() if on_gpu else nullcontext():
        made = toy(num_heads)
        engine = made.engine(
            settings={"window_frames": 6, "sink_frames": 1, "timesteps": (1000.0,)},
            page_size=32,
            kv_memory=8 << 20,
            # A chunk of the largest frames with its window is read in two pieces.
            workspace_tokens=64,
            attention_backend=strategy if on_gpu else "workspace",
            **config,
        )
        requests = [
            made.request(f"stream {n}", chunks=chunks or LENGTHS[n], size=SIZES[n])
            for n in range(num_streams)
        ]
        return run_staggered(engine, requests)


def run_staggered(engine: VideoEngine, requests: list[VideoRequest]) -> dict[str, Tensor]:
    waiting = list(requests)
    found: dict[str, list[Tensor]] = {request.request_id: [] for request in requests}
    while waiting or engine.has_unfinished_requests():
        if waiting:
            engine.add_request(waiting.pop(0))
        for output in engine.step():
            assert output.finish_reason != "error", output.error
            if output.latents is not None:
                found[output.request_id].append(output.latents)
        engine.check_integrity()
    return {name: torch.stack(parts) for name, parts in found.items()}


def check(found: dict[str, Tensor], wanted: dict[str, Tensor], *, allowed: float) -> None:
    assert found.keys() == wanted.keys()
    errors = np.concatenate([relative(found[name], wanted[name]) for name in wanted])
    first = [relative(found[name], wanted[name])[0] for name in wanted]
    assert max(first) <= SAME, "the first chunk reads no page"
    assert errors.max() <= allowed, errors
    if allowed == ANOTHER_CODE:
        assert np.median(errors) <= SAME, errors


def relative(found: Tensor, wanted: Tensor) -> Any:
    difference = (found - wanted).flatten(1).norm(dim=1)
    return (difference / wanted.flatten(1).norm(dim=1)).numpy()


@pytest.fixture
def trellis_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    store = gpu_store.store

    def store_fast(pages: Any, page_ids: Any, residual: Tensor, ids: Tensor, *, slot: int) -> Any:
        if not pages.spec.trellis:
            return store(pages, page_ids, residual, ids, slot=slot)
        return torch.from_numpy(cpu_store.store(pages, page_ids, residual, ids, slot=slot))

    monkeypatch.setattr(gpu_store, "store", store_fast)


def test_it_is_triton_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the context no kernel is launched, and within it none of the CPU's is called."""
    from triton.runtime.interpreter import GridExecutor

    launched = set()
    launch = GridExecutor.__call__

    def noting(self: Any, *given: Any, **named: Any) -> Any:
        launched.add(self.fn.__module__.removeprefix("qvg_engine.kernels."))
        return launch(self, *given, **named)

    monkeypatch.setattr(GridExecutor, "__call__", noting)
    videos(1, on_gpu=False, kv_format="qvg", num_heads=1, chunks=2)
    assert not launched
    for name in ("codec.cpu_store.store", "paged_attention.cpu_attention.attend"):
        monkeypatch.delattr(f"qvg_engine.kernels.{name}")
    videos(1, on_gpu=True, kv_format="qvg", num_heads=1, chunks=2)
    assert launched >= {
        "codec.gpu",
        "codec.gpu_residual",
        "codec.gpu_store",
        "kmeans.gpu",
        "kmeans.gpu_seeding",
        "paged_attention.gpu_dense",
        "rope.gpu",
    }
    assert "paged_attention.gpu_fused" not in launched
    videos(1, on_gpu=True, kv_format="qvg", num_heads=1, chunks=2, strategy="fused")
    assert {"paged_attention.gpu_fused", "paged_attention.gpu_merge"} <= launched


@pytest.mark.parametrize(("keys", "values"), [("q2", "q1"), ("q4", "qvg"), ("qvg-pro", "qvg-pro")])
def test_every_format_from_end_to_end(keys: str, values: str) -> None:
    """Encoded by Triton, too."""
    settings: dict[str, Any] = {
        "kv_format": keys,
        "value_format": values,
        "num_heads": 1,
        "chunks": 2,
    }
    found = videos(1, on_gpu=True, strategy="fused", **settings)
    check(found, videos(1, on_gpu=False, **settings), allowed=ANOTHER_CODE)


@pytest.mark.usefixtures("trellis_of_the_cpu")
@pytest.mark.parametrize("strategy", ["workspace", "fused"])
@pytest.mark.parametrize("kv_format", ["qvg", "qvg-pro", "q4", "q2", "q1"])
def test_three_streams(kv_format: str, strategy: str) -> None:
    found = videos(3, on_gpu=True, strategy=strategy, kv_format=kv_format)
    check(found, videos(3, on_gpu=False, kv_format=kv_format), allowed=ANOTHER_CODE)


@pytest.mark.parametrize(("kv_format", "allowed"), [("dense", SAME), ("bf16", CUT_OFF)])
def test_eight_streams_in_plain_pages(kv_format: str, allowed: float) -> None:
    found = videos(8, on_gpu=True, kv_format=kv_format)
    check(found, videos(8, on_gpu=False, kv_format=kv_format), allowed=allowed)


@pytest.mark.usefixtures("trellis_of_the_cpu")
@pytest.mark.parametrize("strategy", ["workspace", "fused"])
def test_eight_streams_in_refined_pages(strategy: str) -> None:
    settings: dict[str, Any] = {
        "kv_format": "q2",
        "codebook_overhead": 1.0,
        "refinement_overhead": 1.0,
    }
    found = videos(8, on_gpu=True, strategy=strategy, **settings)
    check(found, videos(8, on_gpu=False, **settings), allowed=ANOTHER_CODE)


@pytest.mark.usefixtures("trellis_of_the_cpu")
def test_a_stream_alone_is_what_it_is_in_a_batch() -> None:
    settings: dict[str, Any] = {"kv_format": "q2", "batch_invariant": True}
    batch = videos(3, on_gpu=True, strategy="fused", **settings)
    (alone,) = videos(1, on_gpu=True, strategy="fused", **settings).values()
    assert torch.equal(alone, batch["stream 0"])
