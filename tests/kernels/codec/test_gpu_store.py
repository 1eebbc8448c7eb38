"""Triton's encoding against the reference, in the interpreter or on a GPU."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels.codec import (
    CodecSpec,
    CodedPages,
    encode_span,
    fit_codebook,
    half_split_groups,
    reference,
)
from qvg_engine.kernels.codec.e4m3 import from_e4m3, to_e4m3
from qvg_engine.kernels.codec.refinement import REFINEMENT
from qvg_engine.kernels.codec.residual import subtract
from qvg_engine.kernels.gpu import has_triton

if not has_triton():
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
import triton.language as tl

from qvg_engine.kernels.codec import gpu_residual, gpu_store
from qvg_engine.kernels.codec.gpu_e4m3 import narrow_e4m3, widen_e4m3

MakePages = Callable[..., CodedPages]
MakeRows = Callable[..., Tensor]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter computes with NumPy, which warns of scales of zero.
pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero encountered"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]
# A page is left out, another is part full.
PAGE_IDS = np.array([5, 2, 0, 4])
TOKENS = 53
NAMES = (
    *("qvg", "qvg-pro", "q4", "q2", "q1", "trellis, no stages", "trellis, absmax"),
    *("plain 1", "plain 2", "plain 4", "spread", "spread, no trellis", "wide centroids", "odd"),
)


def to_device(pages: CodedPages) -> CodedPages:
    """The same pages where kernels run."""
    books = pages.codebooks
    return replace(
        pages,
        codes=pages.codes.to(DEVICE),
        ids=pages.ids.to(DEVICE),
        scales=pages.scales.to(DEVICE),
        codebooks=replace(books, rows=books.rows.to(DEVICE)),
    )


def check_store(
    make_pages: MakePages, spec: CodecSpec, residual: Tensor, *, is_key: bool = True
) -> None:
    """All bytes are those of the reference, also around what is written."""
    head_dim = residual.shape[2]
    spec = spec.for_head_dim(head_dim)
    groups = half_split_groups(head_dim, spec.group) if is_key else None
    both = []
    for _ in range(2):
        torch.manual_seed(11)
        both.append(
            make_pages(
                spec,
                num_heads=len(residual),
                head_dim=head_dim,
                channel_groups=groups,
            )
        )
    found, expected = to_device(both[0]), both[1]
    ids = torch.randint(9, (len(residual), spec.stages, TOKENS), dtype=torch.uint8)
    energies = gpu_store.store(found, PAGE_IDS, residual.to(DEVICE), ids.to(DEVICE), slot=1)
    wanted = reference.store(expected, PAGE_IDS, residual, ids, slot=1)
    for name in ("scales", "codes", "ids"):
        one, other = getattr(found, name).cpu(), getattr(expected, name)
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name
    np.testing.assert_allclose(energies.cpu().numpy(), wanted, rtol=2e-6, atol=1e-300)


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_those_of_the_reference(
    make_pages: MakePages, all_specs: dict[str, CodecSpec], name: str
) -> None:
    torch.manual_seed(0)
    heads = 2 if name in ("q2", "qvg") else 1
    check_store(make_pages, all_specs[name], torch.randn(heads, TOKENS, 16), is_key=name != "q1")


def test_a_refinement_is_that_of_the_reference(make_pages: MakePages) -> None:
    torch.manual_seed(1)
    check_store(make_pages, REFINEMENT, torch.randn(1, TOKENS, 128))


@pytest.mark.parametrize("name", ["q2", "qvg", "plain 2", "odd"])
def test_rows_of_all_kinds(
    make_pages: MakePages,
    make_rows: MakeRows,
    all_specs: dict[str, CodecSpec],
    name: str,
    kind: str,
) -> None:
    torch.manual_seed(2)
    check_store(make_pages, all_specs[name], make_rows(kind, 1, TOKENS, 16))


def test_codes_that_do_not_fill_their_bytes(
    make_pages: MakePages, all_specs: dict[str, CodecSpec]
) -> None:
    torch.manual_seed(3)
    for head_dim in (6, 12, 20):
        check_store(make_pages, all_specs["qvg"], torch.randn(2, TOKENS, head_dim), is_key=False)


def test_no_rows_are_no_energy(make_pages: MakePages, all_specs: dict[str, CodecSpec]) -> None:
    pages = to_device(make_pages(all_specs["q2"]))
    rows, ids = torch.empty(2, 0, 64), torch.empty(2, 1, 0, dtype=torch.uint8)
    energies = gpu_store.store(
        pages, np.empty(0, np.int64), rows.to(DEVICE), ids.to(DEVICE), slot=0
    )
    assert energies.tolist() == [0, 0]


@triton.jit  # type: ignore[untyped-decorator]
def _round(x: tl.tensor, codes: tl.tensor, back: tl.tensor, SIZE: tl.constexpr) -> None:
    at = tl.arange(0, SIZE)
    code = narrow_e4m3(tl.load(x + at))
    tl.store(codes + at, code)
    tl.store(back + at, widen_e4m3(code))


def test_scales_are_rounded_as_everywhere_else() -> None:
    every = from_e4m3(torch.arange(256, dtype=torch.uint8))
    finite = every[every.isfinite()]
    between = (finite[:, None] + finite[None, :]).flatten() / 2
    some = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, 464.0, 1e38, 2.0**-10])
    bits = torch.arange(0, 2**31, 2**31 // 4000, dtype=torch.int64).to(torch.int32)
    x = torch.cat([between, between.nextafter(torch.tensor(9.0)), some, bits.view(torch.float32)])
    size = triton.next_power_of_2(len(x))
    x = torch.nn.functional.pad(x, (0, size - len(x))).to(DEVICE)
    codes = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    back = torch.empty(size, device=DEVICE)
    _round[(1,)](x, codes, back, SIZE=size)
    assert torch.equal(codes, to_e4m3(x))
    torch.testing.assert_close(back, from_e4m3(codes), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 4), (70, 20), (33, 128)])
def test_centroids_leave_what_they_leave_on_the_cpu(tokens: int, head_dim: int) -> None:
    torch.manual_seed(4)
    points, centroids = torch.randn(2, tokens, head_dim), torch.randn(2, 7, head_dim)
    ids = torch.randint(7, (2, tokens), dtype=torch.uint8)
    on_device = (x.to(DEVICE) for x in (points, centroids, ids))
    left, energy, counts = gpu_residual.subtract(*on_device)
    expected = subtract(points, centroids, ids)
    assert torch.equal(left.cpu(), expected.points.values)
    np.testing.assert_allclose(energy.cpu().numpy(), expected.points.energy.numpy(), rtol=1e-12)
    assert np.array_equal(counts.cpu().numpy(), expected.counts.numpy())


def test_a_span_is_fitted_and_encoded_as_on_the_cpu(
    make_pages: MakePages, all_specs: dict[str, CodecSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    rows = torch.randn(TOKENS, 1, 16)
    found, expected = (
        make_pages(all_specs["q1"].for_head_dim(16), num_heads=1, head_dim=16, books=0)
        for _ in range(2)
    )
    figures = []
    for pages in (expected, found):
        if pages is found:
            pages = to_device(pages)
            if DEVICE == "cpu":
                for module in ("codec.encode", "codec.residual", "kmeans.lloyd", "kmeans.seeding"):
                    supports = f"qvg_engine.kernels.{module}.gpu_supports"
                    monkeypatch.setattr(supports, lambda x: True)
        on_device = rows.to(pages.device)
        fit_codebook(
            pages, on_device, slot=1, num_centroids=6, seed=3, warm_from=None, iterations=2
        )
        figures.append(encode_span(pages, PAGE_IDS, on_device, slot=1))
        found = pages
    assert torch.equal(found.codebooks.rows.cpu(), expected.codebooks.rows)
    for name in ("codes", "scales", "ids"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    one, other = figures
    assert np.array_equal(one.counts, other.counts)
    for name in ("energy", "residual_energy", "error_energy"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-6)


def test_the_host_does_not_wait(make_pages: MakePages, all_specs: dict[str, CodecSpec]) -> None:
    if DEVICE == "cpu":
        pytest.skip("no CUDA device")
    pages = [to_device(make_pages(all_specs[name])) for name in ("q2", "qvg")]
    rows = torch.randn(2, TOKENS, 64, device="cuda")
    ids = torch.zeros(2, 1, TOKENS, dtype=torch.uint8, device="cuda")
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for part in pages:
                gpu_store.store(part, PAGE_IDS, rows, ids, slot=0)
            gpu_residual.subtract(rows, rows[:, :9].contiguous(), ids[:, 0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
