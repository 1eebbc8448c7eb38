"""Whether every kernel computes on the device what its reference does."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_sections.case import Case, NotThere, Row
from benchmarks.gpu_sections.pages import (
    check_offered,
    codec_of,
    make_layer,
    make_pages,
    make_runs,
    make_workspace,
)
from benchmarks.gpu_sections.setup import FORMATS, PAGE_SIZE, Setup
from qvg_engine.kernels import kmeans
from qvg_engine.kernels.codec import (
    allocate_pages,
    consecutive_slots,
    encode_span,
    fit_codebook,
)
from qvg_engine.kernels.codec import reference as codec_reference
from qvg_engine.kernels.codec.e4m3 import from_e4m3
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import (
    EightBitWorkspace,
    PagedSegment,
    PlainPages,
    RopeTransform,
    Strategy,
    paged_attention,
    reference,
    reference_decode_eight_bit,
    reference_eight_bit,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope import reference as rope_reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADS = 2
TOKENS = 100
PLANNED = {
    "k-means": "qvg_engine.kernels.kmeans.gpu",
    "storing coded rows": "qvg_engine.kernels.codec.gpu_store",
    "dense attention": "qvg_engine.kernels.paged_attention.gpu_dense",
    "8-bit attention": "qvg_engine.kernels.paged_attention.gpu_eight_bit",
    "decoding to 8 bits": "qvg_engine.kernels.paged_attention.gpu_decode_eight_bit",
    "fused attention": "qvg_engine.kernels.paged_attention.gpu_fused",
}
"""Triton kernels that may not be there yet: what calls them runs in plain torch then."""


def cases(setup: Setup) -> Iterator[Case]:
    """The Triton kernels against plain torch, then what calls them."""
    for what, module in PLANNED.items():
        if importlib.util.find_spec(module) is None:
            yield Case({"kernel": what}, _untimed(_missing, module))
    for dtype in DTYPES:
        row = {"dtype": _short(dtype)}
        yield Case({"kernel": "rotate"} | row, _untimed(_rotate, setup, dtype))
        yield Case({"kernel": "place"} | row, _untimed(_place, setup, dtype))
        yield Case({"kernel": "encode bf16"} | row, _untimed(_encode, setup, dtype))
        for name in FORMATS:
            yield Case({"kernel": f"decode {name}"} | row, _untimed(_decode, setup, name, dtype))
    for name in FORMATS[1:]:
        yield Case({"kernel": f"encode {name}"}, _untimed(_encode_span, setup, name))
    yield Case({"kernel": "k-means"}, _untimed(_kmeans, setup))
    for name in FORMATS:
        yield Case({"kernel": f"decode {name} to 8 bits"}, _untimed(_to_eight_bit, setup, name))
    for dtype in dict.fromkeys((torch.float16, setup.dtype)):
        row = {"kernel": "8-bit attention", "dtype": _short(dtype)}
        yield Case(row, _untimed(_eight_bit_attention, setup, dtype))
    for strategy in get_args(Strategy):
        for name in FORMATS if strategy != "reference" else ():
            for dtype in dict.fromkeys((torch.float32, setup.dtype)):
                row = {"kernel": f"attention {strategy} {name}", "dtype": _short(dtype)}
                yield Case(row, _untimed(_attention, setup, strategy, name, dtype))


def _missing(module: str) -> Row:
    raise NotThere(f"there is no {module} yet")


def _untimed(check: Callable[..., Row], *arguments: Any) -> Callable[[float], Row]:
    return lambda _: check(*arguments)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _triton(module: str) -> Any:
    if not has_triton():
        raise NotThere("Triton is not installed")
    return importlib.import_module(module)


def _grid(setup: Setup) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=setup.head_dim, device=setup.device), *setup.frame)


def _compare(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> Row:
    """Two roundings to `dtype` may differ by one unit, and sums in fp32 before them by a little."""
    difference = (actual.double() - expected.double()).abs()
    allowed = torch.finfo(dtype).eps * expected.double().abs() + 2e-5
    # A NaN is no difference that is allowed.
    assert bool((difference <= allowed).all()), f"differs by {difference.max().item():.2e}"
    return {"difference": difference.max().item()}


def _nan(*shape: int, setup: Setup, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, device=setup.device, dtype=dtype)


def _rotate(setup: Setup, dtype: torch.dtype) -> Row:
    kernel = _triton("qvg_engine.kernels.rope.gpu")
    grid, positions = _grid(setup), np.arange(TOKENS) * 7
    x = torch.randn(TOKENS, HEADS, setup.head_dim, device=setup.device).to(dtype)
    expected = rope_reference.rotate(x.double(), *grid.rows(positions))
    return _compare(kernel.rotate(x, grid, positions), expected, dtype)


def _place(setup: Setup, dtype: torch.dtype) -> Row:
    kernel = _triton("qvg_engine.kernels.paged_attention.gpu")
    grid, positions = _grid(setup), np.arange(TOKENS) * 7
    rows = torch.randn(TOKENS, HEADS, setup.head_dim, device=setup.device)
    out, expected = _nan(2, HEADS, TOKENS, setup.head_dim, setup=setup, dtype=dtype)
    kernel.place(rows, positions, out, start=0, rope=grid)
    reference.place(rows, positions, expected, start=0, rope=grid)
    return _compare(out, expected, dtype)


def _encode(setup: Setup, dtype: torch.dtype) -> Row:
    kernel = _triton("qvg_engine.kernels.paged_attention.gpu")
    rows = torch.randn(TOKENS, HEADS, setup.head_dim, device=setup.device).to(dtype)
    pages, expected = (
        PlainPages(torch.zeros(4, HEADS, PAGE_SIZE, setup.head_dim, device=setup.device).bfloat16())
        for _ in range(2)
    )
    page_ids = np.array([3, 0, 2])
    kernel.encode(pages, page_ids, rows)
    reference.encode(expected, page_ids, rows)
    return _compare(pages.data, expected.data, torch.bfloat16)


def _decode(setup: Setup, name: str, dtype: torch.dtype) -> Row:
    coded = codec_of(name, setup.head_dim) is not None
    kernel = _triton(f"qvg_engine.kernels.{'codec' if coded else 'paged_attention'}.gpu")
    plain: Callable[..., None] = codec_reference.decode if coded else reference.decode
    runs = make_runs(TOKENS).cut(5, TOKENS - 3)
    found = []
    for is_key in (True, False):
        rope = _grid(setup) if is_key else None
        pages = make_pages(name, TOKENS, HEADS, setup.head_dim, setup.device, is_key=is_key)
        shape = (2, HEADS, runs.num_tokens, setup.head_dim)
        out, expected = _nan(*shape, setup=setup, dtype=torch.float32)
        out = out.to(dtype)
        kernel.decode(pages, runs, out, start=0, rope=rope)
        plain(pages, runs, expected, start=0, rope=rope)
        found.append(_compare(out, expected, dtype)["difference"])
    return {"difference": max(found)}


def _to_eight_bit(setup: Setup, name: str) -> Row:
    """The largest difference of what codes stand for, in units of a row's or channel's scale."""
    kernel = _triton("qvg_engine.kernels.paged_attention.gpu_decode_eight_bit")
    runs, head_dim = make_runs(TOKENS).cut(5, TOKENS - 3), setup.head_dim
    keys, values = (
        make_pages(name, TOKENS, HEADS, head_dim, setup.device, is_key=is_key)
        for is_key in (True, False)
    )
    got, expected = (
        EightBitWorkspace(
            num_heads=HEADS, head_dim=head_dim, max_tokens=TOKENS, device=setup.device
        )
        for _ in range(2)
    )
    for way, workspace in ((kernel, got), (reference_decode_eight_bit, expected)):
        workspace.clear()
        way.bound_pages(workspace, values, runs)
        way.decode_keys(workspace, keys, runs, start=0, rope=_grid(setup))
    _compare(got.value_scales, expected.value_scales, torch.float32)
    _compare(
        got.key_scales[:, : runs.num_tokens],
        expected.key_scales[:, : runs.num_tokens],
        torch.float32,
    )
    expected.value_scales.copy_(got.value_scales)
    for way, workspace in ((kernel, got), (reference_decode_eight_bit, expected)):
        way.decode_values(workspace, values, runs, start=0)
    off = (got.keys[:, : runs.num_tokens].int() - expected.keys[:, : runs.num_tokens].int()).abs()
    assert off.max().item() <= 1, f"codes of K differ by {off.max().item()}"
    codes, others = (
        x[..., : runs.num_tokens].float()
        if x.dtype == torch.float16
        else from_e4m3(x)[..., : runs.num_tokens]
        for x in (got.values, expected.values)
    )
    difference = (codes - others).abs()
    # A unit of three bits of mantissa, or of what is subnormal.
    assert bool((difference <= 0.13 * others.abs() + 2**-9).all()), "codes of V differ"
    share = (difference > 0).float().mean().item()
    assert share <= 0.01, f"{share:.1%} of V's codes differ"
    return {"difference": difference.max().item()}


def _eight_bit_attention(setup: Setup, dtype: torch.dtype) -> Row:
    """The relative error of the output, to the same 8 bits in plain torch."""
    kernel = _triton("qvg_engine.kernels.paged_attention.gpu_eight_bit")
    shape = (HEADS, TOKENS, setup.head_dim)
    queries, keys, values = (torch.randn(shape, device=setup.device).to(dtype) for _ in range(3))
    workspace = EightBitWorkspace(
        num_heads=HEADS, head_dim=setup.head_dim, max_tokens=TOKENS, device=setup.device
    )
    workspace.clear()
    reference_eight_bit.bound_values(workspace, values)
    reference_eight_bit.store(workspace, keys, values, start=0)
    bias = torch.randn(TOKENS, device=setup.device)
    scale = setup.head_dim**-0.5
    out, lse = kernel.attend(queries, workspace, TOKENS, bias, scale)
    expected, expected_lse = reference_eight_bit.attend(
        queries.float(), workspace, TOKENS, bias, scale
    )
    error = ((out.double() - expected.double()).norm() / expected.double().norm()).item()
    # Weights are rounded to E4M3 beside the largest so far, not beside the largest of all.
    assert error <= 0.04, f"differs by {error:.1e} of the norm, allowed are 4e-02"
    off = (lse - expected_lse).abs().max().item()
    assert off <= 0.01, f"log-sum-exps differ by {off:.1e}"
    return {"difference": error}


def _encode_span(setup: Setup, name: str) -> Row:
    """The share of energy that is lost on the device, and on the CPU with the same codebook."""
    spec = codec_of(name, setup.head_dim)
    assert spec is not None
    rows = torch.randn(TOKENS, HEADS, setup.head_dim)
    page_ids, lost = np.arange(-(-TOKENS // PAGE_SIZE)), []
    codebook: Tensor | None = None
    for device in (torch.device("cpu"), setup.device):
        pages = allocate_pages(
            spec,
            num_pages=len(page_ids),
            num_heads=HEADS,
            page_size=PAGE_SIZE,
            head_dim=setup.head_dim,
            row_table=consecutive_slots(spec, 1),
            device=device,
        )
        if codebook is None:
            fit_codebook(pages, rows, slot=0, num_centroids=8, seed=0, warm_from=None, iterations=2)
            codebook, counts = pages.codebooks.rows, pages.codebooks.counts
        pages.codebooks.rows.copy_(codebook)
        pages.codebooks.counts[:] = counts
        encode_span(pages, page_ids, rows.to(device), slot=0)
        out = torch.empty(HEADS, TOKENS, setup.head_dim, device=device)
        end = np.minimum(PAGE_SIZE, TOKENS - page_ids * PAGE_SIZE)
        runs = PageRuns(page_ids, page_ids * 0, page_ids * 0, end)
        codec_reference.decode(pages, runs, out, start=0, rope=None)
        error = out.cpu().transpose(0, 1) - rows
        lost.append(((error**2).sum() / (rows**2).sum()).item())
    difference = abs(lost[1] - lost[0])
    assert difference <= 0.01 * lost[0], f"loses {lost[1]:.4f} of the energy, not {lost[0]:.4f}"
    return {"difference": difference}


def _kmeans(setup: Setup) -> Row:
    """The energy that is left on the device, and on the CPU from the same centroids."""
    points = torch.randn(HEADS, 500, setup.head_dim)
    initial = points[:, :16].clone()
    settings = kmeans.KMeansSettings(iterations=3)
    left = []
    for device in (torch.device("cpu"), setup.device):
        centroids = kmeans.fit(points.to(device), initial.to(device), settings).centroids
        ids = kmeans.assign(points.to(device), centroids).ids.cpu().long()
        nearest = torch.stack([c[i] for c, i in zip(centroids.cpu(), ids, strict=True)])
        left.append(((points - nearest) ** 2).sum().item())
    difference = abs(left[1] - left[0]) / left[0]
    assert difference <= 1e-3, f"leaves {left[1]:.6g} of the energy, not {left[0]:.6g}"
    return {"difference": difference}


def _attention(setup: Setup, strategy: Strategy, name: str, dtype: torch.dtype) -> Row:
    """The relative error of the output, to attention in fp32 over the same pages."""
    heads, head_dim = setup.heads[0], setup.head_dim
    layer = make_layer(name, TOKENS, num_heads=heads, head_dim=head_dim, device=setup.device)
    check_offered(strategy, layer)
    workspace = make_workspace(
        strategy,
        num_heads=heads,
        head_dim=head_dim,
        max_tokens=70,
        device=setup.device,
        dtype=dtype,
    )
    queries = torch.randn(40, heads, head_dim, device=setup.device)
    outputs = [
        paged_attention(
            queries.to(dtype) if chosen == strategy else queries.to(dtype).float(),
            [PagedSegment(layer, make_runs(TOKENS))],
            workspace=workspace,
            transform=RopeTransform(_grid(setup)),
            query_positions=np.arange(40) + TOKENS,
            strategy=chosen,
        ).double()
        for chosen in (strategy, "reference")
    ]
    error = ((outputs[0] - outputs[1]).norm() / outputs[1].norm()).item()
    # The error of 8 bits themselves, on random rows, is 0.02 to 0.03.
    allowed = 1e-4 if dtype == torch.float32 and strategy != "eight-bit" else 0.05
    assert error <= allowed, f"differs by {error:.1e} of the norm, allowed are {allowed:.0e}"
    return {"difference": error}
