"""The published formats against a recomputation of their rules in the published channel order."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels.codec import (
    PRESETS,
    CodecSpec,
    CodedPages,
    decode,
    encode_span,
    half_split_groups,
)
from qvg_engine.kernels.codec.packing import unpack
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope.layout import to_half_split, to_interleaved

MakePages = Callable[..., CodedPages]
MakeRows = Callable[..., Tensor]

HEADS, PAGE_SIZE, HEAD_DIM = 2, 16, 128
# Two pages and a part of a third.
TOKENS = 43

FORMATS = {
    "qvg": PRESETS["qvg"],
    "qvg-pro": PRESETS["qvg-pro"],
    "int4": msgspec.structs.replace(
        PRESETS["qvg"], bits=4, levels=tuple(float(x) for x in range(-7, 8))
    ),
}
CASES = pytest.mark.parametrize(
    "spec", [msgspec.structs.replace(x, centroids=9) for x in FORMATS.values()], ids=FORMATS
)


def published(rows: Tensor, books: list[Tensor], bits: int, block: int) -> tuple[Tensor, ...]:
    """Ids [stages, tokens, heads], codes, scales and decoded rows, all in the published order.

    rows: fp32 [tokens, heads, head_dim]; books: [heads, centroids, head_dim], one a stage.
    """
    residual, ids = rows, []
    for book in books:
        distances = residual.double()[:, :, None] - book.double()
        ids.append(distances.square().sum(dim=-1).argmin(dim=-1))
        residual = residual - take(book, ids[-1])
    top = 2 ** (bits - 1) - 1
    blocks = residual.unflatten(-1, (-1, block))
    scales = (blocks.abs().amax(dim=-1, keepdim=True) / top).clamp(min=1e-10)
    scales = scales.clamp(max=448).to(torch.float8_e4m3fn).float()
    ratio = blocks / scales
    codes = (ratio + torch.tensor(0.5).copysign(ratio)).trunc().clamp(-top, top)
    # Such blocks decode to their centroids; what their codes are is left open.
    codes = torch.where(scales > 0, codes, 0)
    decoded = (codes * scales).flatten(-2)
    for book, chosen in zip(books, ids, strict=True):
        decoded = decoded + take(book, chosen)
    return torch.stack(ids), codes.flatten(-2) + top, scales[..., 0], decoded


def take(book: Tensor, ids: Tensor) -> Tensor:
    """[tokens, heads, head_dim]: the centroids `ids` [tokens, heads] of [heads, centroids, ...]."""
    return torch.stack([book[head].float()[ids[:, head]] for head in range(len(book))], dim=1)


def to_rows(x: Tensor) -> Tensor:
    """[pages, heads, page_size, ...] to [tokens, heads, ...]."""
    return x.transpose(1, 2).flatten(0, 1)[:TOKENS]


@CASES
@pytest.mark.parametrize("is_half_split", [False, True], ids=["consecutive", "half-split"])
def test_codes_scales_and_rows_are_the_published_ones(
    make_pages: MakePages,
    make_rows: MakeRows,
    kind: str,
    spec: CodecSpec,
    is_half_split: bool,
) -> None:
    groups = half_split_groups(HEAD_DIM, spec.group) if is_half_split else None
    pages = make_pages(spec, head_dim=HEAD_DIM, channel_groups=groups)
    to_stored = to_half_split if is_half_split else torch.Tensor.clone
    to_published = to_interleaved if is_half_split else torch.Tensor.clone
    rows = make_rows(kind, TOKENS, HEADS, HEAD_DIM)
    rows[5], rows[6, 0] = 0, rows[7, 0]
    books = [to_published(pages.codebooks.stage(1, stage)) for stage in range(spec.stages)]
    ids, codes, scales, expected = published(rows, books, spec.bits, spec.group)

    page_ids = np.array([4, 0, 3])
    encode_span(pages, page_ids, to_stored(rows), slot=1)
    chosen = to_rows(pages.ids[page_ids].transpose(2, 3)).permute(2, 0, 1)
    assert torch.equal(chosen.long(), ids)
    stored_scales = to_rows(pages.scales[page_ids]).view(torch.float8_e4m3fn).float()
    assert torch.equal(stored_scales, scales)
    stored_codes = unpack(to_rows(pages.codes[page_ids]), spec.bits, HEAD_DIM)
    assert torch.equal(to_published(stored_codes).float(), codes)

    entry = np.arange(3)
    runs = PageRuns(page_ids, entry * PAGE_SIZE, 0 * entry, np.array([16, 16, 11]))
    out = torch.full((HEADS, TOKENS, HEAD_DIM), torch.nan)
    decode(pages, runs, out, start=0, rope=None)
    assert torch.equal(to_published(out.transpose(0, 1)), expected)


@CASES
def test_blocks_without_a_scale_decode_to_their_centroids(
    make_pages: MakePages, spec: CodecSpec
) -> None:
    pages = make_pages(spec, head_dim=HEAD_DIM)
    centroids = pages.codebooks.stage(0, 0)
    ids = torch.randint(9, (PAGE_SIZE,))
    # Where there are more stages, they hold zeros.
    for stage in range(1, spec.stages):
        pages.codebooks.set_stage(0, stage, torch.zeros(HEADS, 9, HEAD_DIM))
    exact = centroids[:, ids].transpose(0, 1).float()
    encode_span(pages, np.array([2]), exact + 1e-4 * torch.randn(exact.shape), slot=0)
    one = np.array([0])
    out = torch.full((HEADS, PAGE_SIZE, HEAD_DIM), torch.nan)
    decode(pages, PageRuns(one + 2, one, one, one + PAGE_SIZE), out, start=0, rope=None)
    assert torch.equal(out.transpose(0, 1), exact)
