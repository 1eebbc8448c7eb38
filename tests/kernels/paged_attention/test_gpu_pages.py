"""The Triton kernels for plain pages against the reference: on a GPU, or in the interpreter."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels.paged_attention import PageRuns, PlainPages, cpu, reference
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.reference import rotate

pytest.importorskip("triton", reason="Triton is not installed")

from qvg_engine.kernels.paged_attention import gpu
from qvg_engine.kernels.paged_attention.backends import kernels_for

MakeCache = Callable[..., Any]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VISIBLE = {
    "one token": (1, [(0, 1)]),
    "65": (65, [(0, 65)]),
    "cut at both ends": (300, [(70, 299)]),
    "sink and window": (200, [(0, 30), (125, 200)]),
    "twice in one page": (64, [(0, 10), (20, 64)]),
}


def rounding(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding; Triton's interpreter cuts bf16 off instead."""
    eps = torch.finfo(dtype).eps
    return eps if dtype == torch.bfloat16 and DEVICE == "cpu" else eps / 2


def assert_converted_alike(actual: Tensor, expected: Tensor, source: torch.dtype) -> None:
    """Bit for bit, but where the interpreter cuts off what does not fit bf16."""
    cut_off = actual.dtype == torch.bfloat16 != source and DEVICE == "cpu"
    rtol = rounding(torch.bfloat16) if cut_off else 0
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0, equal_nan=True)


def make_grid(head_dim: int, *, device: str = DEVICE) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=head_dim, device=device), height=5, width=8)


def on_device(pages: PlainPages) -> PlainPages:
    return PlainPages(pages.data.to(DEVICE))


@pytest.mark.parametrize(("num_tokens", "visible"), VISIBLE.values(), ids=VISIBLE)
@pytest.mark.parametrize(
    ("num_heads", "head_dim", "page_size"), [(1, 64, 64), (2, 128, 64), (3, 64, 128), (2, 24, 4)]
)
def test_decoded_rows_are_the_written_ones(
    make_cache: MakeCache,
    num_tokens: int,
    visible: list[tuple[int, int]],
    num_heads: int,
    head_dim: int,
    page_size: int,
) -> None:
    if page_size == 4:
        num_tokens, visible = -(-num_tokens // 16), [(a // 16, -(-b // 16)) for a, b in visible]
    cache = make_cache(
        num_tokens, num_heads=num_heads, head_dim=head_dim, page_size=page_size, visible=visible
    )
    count = len(cache.positions)
    exact = rotate(cache.keys.double(), *make_grid(head_dim, device="cpu").rows(cache.positions))
    pages = on_device(cache.segment.pages.keys)
    for rope in (None, make_grid(head_dim)):
        out = torch.full((num_heads, count + 9, head_dim), torch.nan, device=DEVICE)
        gpu.decode(pages, cache.segment.runs, out, start=4, rope=rope)
        decoded = out[:, 4 : 4 + count].cpu().transpose(0, 1)
        if rope is None:
            assert torch.equal(decoded, cache.keys)
        else:
            torch.testing.assert_close(decoded.double(), exact, rtol=0, atol=1.5e-6)
        assert out[:, :4].isnan().all()
        assert out[:, 4 + count :].isnan().all()


@pytest.mark.parametrize("page_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_every_dtype_is_converted_once(
    make_cache: MakeCache, page_dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    cache = make_cache(150, key_dtype=page_dtype, head_dim=128)
    pages, runs = on_device(cache.segment.pages.keys), cache.segment.runs
    out = torch.full((2, 2, 150, 128), torch.nan).to(DEVICE, out_dtype)
    gpu.decode(pages, runs, out[0], start=0, rope=None)
    assert_converted_alike(out[0].cpu(), cache.keys.to(out_dtype).transpose(0, 1), page_dtype)
    gpu.decode(pages, runs, out[1], start=0, rope=make_grid(128))
    exact = rotate(cache.keys.double(), *make_grid(128, device="cpu").rows(cache.positions))
    error = (out[1].cpu().double() - exact.transpose(0, 1)).abs()
    largest = rounding(out_dtype) * exact.transpose(0, 1).abs()
    assert (error <= largest * 1.001 + 1.5e-6).all()


@pytest.mark.parametrize("rows_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("rotated", [False, True])
def test_dense_rows_are_placed_as_decoded_ones_are(
    make_cache: MakeCache, rows_dtype: torch.dtype, out_dtype: torch.dtype, rotated: bool
) -> None:
    rope = make_grid(64) if rotated else None
    cache = make_cache(150, key_dtype=rows_dtype, visible=[(0, 30), (100, 150)])
    rows = cache.keys.to(DEVICE, rows_dtype)
    placed, decoded = torch.full((2, 2, 90, 64), torch.nan).to(DEVICE, out_dtype)
    gpu.place(rows, cache.positions, placed, start=5, rope=rope)
    gpu.decode(on_device(cache.segment.pages.keys), cache.segment.runs, decoded, start=5, rope=rope)
    assert torch.equal(placed[:, 5:85], decoded[:, 5:85])
    assert not placed[:, 5:85].isnan().any()
    assert placed[:, :5].isnan().all()
    assert placed[:, 85:].isnan().all()


@pytest.mark.parametrize("page_dtype", DTYPES)
@pytest.mark.parametrize("rows_dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [0, 1, 150])
def test_encoding_stores_the_bits_that_the_reference_does(
    page_dtype: torch.dtype, rows_dtype: torch.dtype, num_tokens: int
) -> None:
    # Rows of a wider tensor, as those of Q, K and V together are.
    rows = torch.randn(num_tokens, 2, 3 * 64).to(DEVICE, rows_dtype)[..., 64:128]
    page_ids = np.array([4, 0, 5], dtype=np.int32)
    pages, expected = (
        PlainPages(torch.full((6, 2, 64, 64), torch.nan).to(DEVICE, page_dtype)) for _ in range(2)
    )
    gpu.encode(pages, page_ids, rows)
    reference.encode(expected, page_ids, rows)
    assert_converted_alike(pages.data, expected.data, rows_dtype)


def test_nothing_to_decode_writes_nothing(make_cache: MakeCache) -> None:
    cache = make_cache(64)
    out = torch.full((2, 3, 64), torch.nan, device=DEVICE)
    runs = cache.segment.runs
    no_slots = PageRuns(runs.page_id, runs.first_token, runs.end, runs.end)
    for empty in (runs.cut(0, 0), no_slots):
        for rope in (None, make_grid(64)):
            gpu.decode(on_device(cache.segment.pages.keys), empty, out, start=3, rope=rope)
    gpu.place(cache.keys[:0].to(DEVICE), cache.positions[:0], out, start=3, rope=make_grid(64))
    assert out.isnan().all()


def test_tensors_on_the_cpu_keep_their_kernels() -> None:
    assert kernels_for(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)) is cpu
    assert kernels_for(torch.zeros(1), torch.zeros(1, dtype=torch.float16)) is reference


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_gpu_gets_these_kernels_and_the_host_does_not_wait(make_cache: MakeCache) -> None:
    cache = make_cache(200, head_dim=128, key_dtype=torch.bfloat16)
    pages, rope = on_device(cache.segment.pages.keys), make_grid(128)
    out = torch.zeros(2, 200, 128, dtype=torch.bfloat16, device=DEVICE)
    rows = cache.keys.to(DEVICE)
    kernels = kernels_for(pages.data, out)
    assert kernels is gpu
    assert kernels_for(pages.data.double(), out) is reference
    kernels.decode(pages, cache.segment.runs, out, start=0, rope=rope)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.decode(pages, cache.segment.runs, out, start=0, rope=rope)
        kernels.place(rows, cache.positions, out, start=0, rope=rope)
        kernels.encode(pages, np.arange(4), rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
