"""Triton's decoding against the reference, every format, in the interpreter or on a GPU."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from qvg_engine.kernels.codec import PRESETS, CodecSpec, CodedPages, half_split_groups, reference
from qvg_engine.kernels.codec.packing import pack
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from tests.kernels.conftest import as_runs

if not has_triton():
    pytest.skip("Triton is not installed", allow_module_level=True)

from qvg_engine.kernels.codec import gpu

MakePages = Callable[..., CodedPages]

PAGE_OF = np.array([2, -1, 0, 4, -1, 1], np.int32)
# (page, first token, begin, end): whole and cut pages, one of them twice, one without a token.
ENTRIES = [
    (2, 0, 7, 40),
    (1, 40, 0, 40),
    (5, 80, 0, 33),
    (0, 200, 3, 4),
    (4, 240, 5, 5),
    (2, 280, 0, 32),
]
START = 3


def filled(
    make_pages: MakePages,
    spec: CodecSpec,
    *,
    head_dim: int = 64,
    is_key: bool = True,
    is_refined: bool = False,
) -> CodedPages:
    """Six pages of 40 tokens whose every bit is random, two of each of three codebooks."""
    spec = spec.for_head_dim(head_dim)
    pages = make_pages(
        spec,
        page_size=40,
        head_dim=head_dim,
        channel_groups=half_split_groups(head_dim, spec.group) if is_key else None,
        refinement_pages=5 if is_refined else 0,
    )
    num_codes = 2**spec.bits if spec.trellis else len(spec.levels)
    codes = torch.randint(num_codes, (*pages.codes.shape[:3], head_dim), dtype=torch.uint8)
    pages.codes.copy_(pack(codes, spec.bits))
    stored = [pages.scales]
    if pages.refinement is not None:
        pages.refinement.codes.random_(256)
        pages.refinement.page_of[:] = PAGE_OF
        stored.append(pages.refinement.scales)
    for scales in stored:
        if scales.dtype == torch.uint8:
            # Subnormal ones among them, none of them NaN.
            scales.random_(0x50)
        else:
            scales.uniform_(0.01, 4.0)
    pages.slot_of_page[:] = [0, 1, 2, 0, 1, 2]
    # Slot 2 has two centroids less than the spec.
    pages.ids.random_(spec.centroids - 2)
    return pages


def check(pages: CodedPages, *, dtype: torch.dtype, rope: RopeGrid | None) -> None:
    """Up to rounding: the order of operations is the same, but products may be added at once."""
    runs = as_runs(ENTRIES)
    count = runs.num_tokens
    shape = (pages.num_heads, count + 8, pages.head_dim)
    out, expected = torch.full((2, *shape), torch.nan).to(dtype)
    gpu.decode(pages, runs, out, start=START, rope=rope)
    reference.decode(pages, runs, expected, start=START, rope=rope)
    written = slice(START, START + count)
    assert expected[:, written].isfinite().all()
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    left = (out[:, written].float() - expected[:, written].float()).abs()
    assert float(left.max()) <= tolerance * float(expected[:, written].abs().max())
    assert out[:, :START].isnan().all()
    assert out[:, START + count :].isnan().all()


def make_grid(head_dim: int) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=head_dim), height=5, width=8)


@pytest.mark.parametrize("is_key", [True, False], ids=["K", "V"])
@pytest.mark.parametrize("name", PRESETS)
def test_presets(make_pages: MakePages, name: str, is_key: bool) -> None:
    spec = msgspec.structs.replace(PRESETS[name], centroids=9)
    pages = filled(make_pages, spec, head_dim=128, is_key=is_key, is_refined=spec.trellis)
    check(pages, dtype=torch.float32, rope=make_grid(128) if is_key else None)


def test_other_formats(make_pages: MakePages, spec: CodecSpec) -> None:
    pages = filled(make_pages, spec)
    assert gpu.supports(pages, torch.empty(0))
    check(pages, dtype=torch.float32, rope=make_grid(64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_halves(make_pages: MakePages, dtype: torch.dtype) -> None:
    spec = msgspec.structs.replace(PRESETS["q2"], centroids=9)
    check(filled(make_pages, spec, is_refined=True), dtype=dtype, rope=make_grid(64))


@pytest.mark.parametrize("name", ["q1", "q2", "q4"])
def test_refined_pages(make_pages: MakePages, name: str) -> None:
    """A refinement's planes are those of two bits, whatever the bits of its page."""
    spec = msgspec.structs.replace(PRESETS[name], centroids=9)
    check(filled(make_pages, spec, is_refined=True), dtype=torch.float32, rope=make_grid(64))


def test_nothing_is_read_without_runs(make_pages: MakePages) -> None:
    out = torch.full((2, 5, 64), torch.nan)
    spec = msgspec.structs.replace(PRESETS["q2"], centroids=9)
    gpu.decode(filled(make_pages, spec), as_runs([]), out, start=2, rope=None)
    assert out.isnan().all()


def test_what_is_not_supported(make_pages: MakePages) -> None:
    spec = msgspec.structs.replace(PRESETS["q2"], centroids=9, group=8)
    assert not gpu.supports(make_pages(spec, head_dim=24), torch.empty(0)), "6 bytes of codes"
    assert not gpu.supports(make_pages(spec, head_dim=16), torch.empty(0)), "4 bytes of codes"
    assert not gpu.supports(make_pages(spec), torch.empty(0, dtype=torch.float64))
