"""Attention straight over coded pages: Triton's kernel against decoding and plain torch."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels.codec import (
    PRESETS,
    CodedPages,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    half_split_groups,
)
from qvg_engine.kernels.codec.packing import pack
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import (
    DenseSegment,
    LayerPages,
    PagedSegment,
    PlainPages,
    RopeTransform,
    Segment,
    Strategy,
    Workspace,
    decode,
    paged_attention_with_lse,
    reference,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from tests.kernels.conftest import as_runs

if not has_triton():
    pytest.skip("Triton is not installed", allow_module_level=True)

from qvg_engine.kernels.device import ARCHITECTURES
from qvg_engine.kernels.paged_attention import fused_tiles, gpu_fused
from qvg_engine.kernels.paged_attention.gpu_fused import PagedPass

PAGE_SIZE, NUM_PAGES, HEADS, SCALE = 64, 8, 2, 0.09
STRATEGIES: tuple[Strategy, Strategy] = ("fused", "reference")
Entries = list[tuple[int, int, int, int]]
# Streams of (page, first token, begin, end): with a sink, cut pages, and one of a single token.
STREAMS: list[Entries] = [
    [(3, 0, 0, 64), (0, 256, 40, 64), (6, 320, 0, 64), (2, 384, 0, 33)],
    [(5, 64, 63, 64)],
    [(1, 0, 0, 64), (4, 64, 0, 7)],
]


def random_pages(
    name: str,
    head_dim: int,
    *,
    is_key: bool,
    num_heads: int = HEADS,
    page_size: int = PAGE_SIZE,
) -> CodedPages:
    """Pages of two codebooks whose every bit is random; every other one is refined."""
    spec = msgspec.structs.replace(PRESETS[name], centroids=9).for_head_dim(head_dim)
    groups = half_split_groups if is_key else consecutive_groups
    pages = allocate_pages(
        spec,
        num_pages=NUM_PAGES,
        num_heads=num_heads,
        page_size=page_size,
        head_dim=head_dim,
        row_table=consecutive_slots(spec, 2),
        device="cpu",
        channel_groups=groups(head_dim, spec.group),
        refinement_pages=NUM_PAGES // 2 if spec.trellis else 0,
    )
    num_codes = 2**spec.bits if spec.trellis else len(spec.levels)
    codes = torch.randint(num_codes, (*pages.codes.shape[:3], head_dim), dtype=torch.uint8)
    pages.codes.copy_(pack(codes, spec.bits))
    pages.scales.random_(0x18, 0x38)
    pages.ids.random_(spec.centroids)
    pages.slot_of_page[:] = np.arange(NUM_PAGES) % 2
    for slot in range(2):
        pages.codebooks.counts[slot] = spec.centroids
        for stage in range(spec.stages):
            pages.codebooks.set_stage(slot, stage, torch.randn(num_heads, spec.centroids, head_dim))
        if spec.channel_widths:
            pages.codebooks.set_widths(slot, torch.rand(num_heads, head_dim) + 0.5)
    if pages.refinement is not None:
        pages.refinement.codes.random_(256)
        pages.refinement.scales.random_(0x08, 0x20)
        pages.refinement.page_of[::2] = np.arange(NUM_PAGES // 2)
    return pages


def expected(queries: Tensor, pages: LayerPages, runs: PageRuns, rope: RopeGrid | None) -> Tensor:
    """Output and, as one more channel, the log-sum-exp, fp32 [heads, queries, head_dim + 1]."""
    rows = torch.empty(2, HEADS, runs.num_tokens, queries.shape[2])
    decode(pages.keys, runs, rows[0], start=0, rope=rope)
    decode(pages.values, runs, rows[1], start=0, rope=None)
    out, lse = reference.attend(queries, rows[0], rows[1], None, SCALE)
    return torch.cat((out, lse[..., None]), dim=-1)


def check(
    queries: Tensor,
    pages: LayerPages,
    passes: Sequence[PagedPass],
    *,
    num_programs: int = 1,
    rope: RopeGrid | None = None,
    tolerance: float = 2e-5,
) -> None:
    out, lse = gpu_fused.attend(
        queries, pages, passes, rope=rope, scale=SCALE, num_programs=num_programs
    )
    found = torch.cat((out, lse[..., None]), dim=-1)
    for part in passes:
        rows = slice(part.start, part.stop)
        wanted = expected(queries[:, rows].float(), pages, part.runs, rope)
        left = (found[:, rows] - wanted).abs().amax()
        assert left <= tolerance * wanted.abs().amax(), part


def layer(name: str, head_dim: int = 128, **sizes: int) -> LayerPages:
    keys, values = (random_pages(name, head_dim, is_key=k, **sizes) for k in (True, False))
    return LayerPages(keys, values)


def passes_of(*counts: int) -> list[PagedPass]:
    ends = np.cumsum(counts)
    return [
        PagedPass(int(end - count), int(end), as_runs(STREAMS[index % len(STREAMS)]))
        for index, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_format(name: str) -> None:
    grid = RopeGrid(RopeTables(head_dim=128), height=5, width=8)
    check(torch.randn(HEADS, 7, 128), layer(name), passes_of(7), rope=grid)


@pytest.mark.parametrize("name", ["qvg", "q2", "q4"])
def test_heads_of_64_channels(name: str) -> None:
    grid = RopeGrid(RopeTables(head_dim=64), height=4, width=4)
    check(torch.randn(HEADS, 70, 64), layer(name, 64), passes_of(70), rope=grid)


def test_streams_of_different_lengths_share_a_launch() -> None:
    check(torch.randn(HEADS, 84, 128), layer("q2"), passes_of(3, 65, 16))


@pytest.mark.parametrize("num_programs", [6, 1000])
def test_entries_are_split(num_programs: int) -> None:
    queries = torch.randn(HEADS, 21, 128)
    check(queries, layer("q2"), passes_of(5, 9, 7), num_programs=num_programs)


def test_formats_of_keys_and_values_may_differ() -> None:
    pages = LayerPages(random_pages("q1", 128, is_key=True), random_pages("q4", 128, is_key=False))
    check(torch.randn(HEADS, 4, 128), pages, passes_of(4))


def test_halves() -> None:
    queries = torch.randn(HEADS, 9, 128).half()
    check(queries, layer("q2"), passes_of(9), tolerance=4e-3)


def test_what_is_not_supported() -> None:
    pages = layer("q2")
    assert gpu_fused.supports(pages)
    plain = PlainPages(torch.empty(NUM_PAGES, HEADS, PAGE_SIZE, 128))
    assert not gpu_fused.supports(LayerPages(pages.keys, plain))
    assert not gpu_fused.supports(layer("q2", 256))


def test_what_spills_with_an_older_triton_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = random_pages("qvg-pro", 128, is_key=True)
    assert fused_tiles.tile_tokens(pages, 89) is not None
    monkeypatch.setattr(fused_tiles, "before_3_9", lambda: True)
    assert fused_tiles.tile_tokens(pages, 89) is None
    assert fused_tiles.tile_tokens(pages, 90) is not None
    q2 = random_pages("q2", 128, is_key=True)
    assert all(fused_tiles.tile_tokens(q2, architecture) for architecture in ARCHITECTURES)


def test_as_a_strategy() -> None:
    """With what is dense beside the pages, and two query heads for each of K and V."""
    queries = torch.randn(11, 2 * HEADS, 128)
    rows = torch.randn(2, 20, HEADS, 128)
    segments: list[Segment] = [
        PagedSegment(layer("q2"), as_runs(STREAMS[0])),
        DenseSegment(keys=rows[0], values=rows[1], positions=np.arange(500, 520)),
        PagedSegment(layer("q1"), as_runs(STREAMS[1])),
        DenseSegment(keys=rows[1, :3], values=rows[0, :3], log_weights=torch.randn(3)),
    ]
    workspace = Workspace(
        num_heads=HEADS, head_dim=128, max_tokens=16, device="cpu", dtype=torch.float32
    )
    fused, plain = (
        paged_attention_with_lse(
            queries,
            segments,
            workspace=workspace,
            transform=RopeTransform(RopeGrid(RopeTables(head_dim=128), height=5, width=8)),
            query_positions=np.arange(500, 511),
            strategy=strategy,
        )
        for strategy in STRATEGIES
    )
    assert (fused.out - plain.out).abs().max() <= 2e-5 * plain.out.abs().max()
    assert (fused.lse - plain.lse).abs().max() <= 2e-5 * plain.lse.abs().max()
