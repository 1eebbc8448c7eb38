"""Pages of every format with random contents, partial runs of them, and what they decode to."""

import msgspec
import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.codec import (
    PRESETS,
    CodecSpec,
    CodedPages,
    allocate_pages,
    consecutive_slots,
    half_split_groups,
    reference,
)
from qvg_engine.kernels.codec.packing import pack
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import EightBitWorkspace, Pages, PlainPages
from qvg_engine.kernels.paged_attention import reference as plain_reference
from tests.kernels.conftest import as_runs

PAGE_SIZE = 72
NUM_PAGES = 6
# (page, first token, begin, end): whole and cut pages, one of them twice, one without a token.
ENTRIES = [
    (2, 0, 7, 72),
    (1, 72, 0, 72),
    (5, 144, 0, 33),
    (0, 216, 3, 4),
    (4, 288, 5, 5),
    (2, 360, 0, 8),
]
RUNS: PageRuns = as_runs(ENTRIES)
REFINEMENT_OF = np.array([2, -1, 0, 4, -1, 1], np.int32)
FORMATS = ("float32", "bfloat16", *PRESETS)


def make_pages(
    name: str, *, num_heads: int, head_dim: int, is_key: bool, device: torch.device | str = "cpu"
) -> Pages:
    """K or V in a format: coded pages of three codebooks, some of the pages with a refinement.

    What no run of `RUNS` reads is NaN, wherever there is one.
    """
    if name in ("float32", "bfloat16"):
        data = torch.full((NUM_PAGES, num_heads, PAGE_SIZE, head_dim), torch.nan)
        for page, _, begin, end in ENTRIES:
            data[page, :, begin:end] = torch.randn(num_heads, end - begin, head_dim)
        return PlainPages(data.to(getattr(torch, name)).to(device))
    return coded_pages(
        msgspec.structs.replace(PRESETS[name], centroids=9),
        num_heads=num_heads,
        head_dim=head_dim,
        is_key=is_key,
        device=device,
    )


def coded_pages(
    spec: CodecSpec,
    *,
    num_heads: int,
    head_dim: int,
    is_key: bool,
    device: torch.device | str = "cpu",
) -> CodedPages:
    spec = spec.for_head_dim(head_dim)
    pages = allocate_pages(
        spec,
        num_pages=NUM_PAGES,
        num_heads=num_heads,
        page_size=PAGE_SIZE,
        head_dim=head_dim,
        row_table=consecutive_slots(spec, 3),
        device=device,
        channel_groups=half_split_groups(head_dim, spec.group) if is_key else None,
        refinement_pages=5 if spec.trellis else 0,
        refined_page_of=REFINEMENT_OF.copy() if spec.trellis else None,
    )
    num_codes = 2**spec.bits if spec.trellis else len(spec.levels)
    codes = torch.randint(num_codes, (*pages.codes.shape[:3], head_dim), dtype=torch.uint8)
    pages.codes.copy_(pack(codes, spec.bits))
    _fill_scales(pages.scales, {page: page for page in range(NUM_PAGES)})
    if pages.refinement is not None:
        pages.refinement.codes.random_(256)
        _fill_scales(
            pages.refinement.scales,
            {page: int(at) for page, at in enumerate(REFINEMENT_OF) if at >= 0},
        )
    pages.codebooks.rows.view(torch.uint8).fill_(255)
    pages.slot_of_page[:] = [0, 1, 2, 0, 1, 2]
    pages.ids.random_(spec.centroids - 2)
    for slot in range(3):
        # Not all of the centroids exist.
        pages.codebooks.counts[slot] = spec.centroids - slot
        for stage in range(spec.stages):
            shape = pages.codebooks.stage(slot, stage).shape
            pages.codebooks.set_stage(slot, stage, torch.randn(shape) / (stage + 1))
        if spec.channel_widths:
            pages.codebooks.set_widths(slot, torch.rand(num_heads, head_dim) + 0.2)
    return pages


def _fill_scales(scales: Tensor, place_of: dict[int, int]) -> None:
    """Random ones where they are read, NaN elsewhere."""
    # In E4M3 and in fp16 this is NaN.
    scales.view(torch.uint8).fill_(0x7F)
    for page, _, begin, end in ENTRIES:
        if page not in place_of:
            continue
        read = scales[place_of[page], :, begin:end]
        if scales.dtype == torch.uint8:
            # Subnormal ones among them.
            read.copy_(torch.randint(0x40, read.shape))
        else:
            read.copy_(torch.rand(read.shape) + 0.1)


def decoded(pages: Pages) -> Tensor:
    """fp32 [heads, tokens of RUNS, head_dim], before RoPE."""
    out = torch.empty(pages.num_heads, RUNS.num_tokens, pages.head_dim)
    decode = reference.decode if isinstance(pages, CodedPages) else plain_reference.decode
    decode(pages, RUNS, out, start=0, rope=None)  # type: ignore[arg-type]
    return out


def nan_workspace(
    *,
    num_heads: int,
    head_dim: int,
    max_tokens: int,
    device: torch.device | str = "cpu",
    value_dtype: torch.dtype = torch.uint8,
) -> EightBitWorkspace:
    """NaN wherever there is a NaN, and the largest codes elsewhere."""
    workspace = EightBitWorkspace(
        num_heads=num_heads,
        head_dim=head_dim,
        max_tokens=max_tokens,
        device=device,
        value_dtype=value_dtype,
    )
    workspace.keys.fill_(127)
    workspace.values.fill_(0x7F if workspace.has_e4m3 else torch.nan)
    workspace.key_scales.fill_(torch.nan)
    workspace.bias.fill_(torch.nan)
    workspace.clear()
    return workspace
