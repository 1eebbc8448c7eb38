"""Decoding to 8 bits in plain torch: rows are decoded in fp32, some at a time, and quantised."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.codec.e4m3 import LARGEST, from_e4m3
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import reference, reference_eight_bit
from qvg_engine.kernels.paged_attention.decode import decode
from qvg_engine.kernels.paged_attention.pages import Pages
from qvg_engine.kernels.rope import RopeGrid

if TYPE_CHECKING:
    from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace

_BLOCK = 4096
"""Tokens that are decoded to fp32 at once."""


def bound_pages(workspace: "EightBitWorkspace", pages: Pages, runs: PageRuns) -> None:
    """See `decode_eight_bit.bound_pages`."""
    if not runs.num_tokens:
        return
    if isinstance(pages, CodedPages):
        largest = _largest_of_codes(pages, runs)
    else:
        largest = reference.gather(pages, runs).float().abs().amax(0)
    scales = largest / LARGEST
    torch.maximum(workspace.value_scales, scales, out=workspace.value_scales)


def decode_keys(
    workspace: "EightBitWorkspace",
    pages: Pages,
    runs: PageRuns,
    *,
    start: int,
    rope: RopeGrid | None,
) -> None:
    """See `decode_eight_bit.decode_keys`."""
    for place, rows in _blocks(pages, runs, start, rope):
        reference_eight_bit.store_keys(workspace, rows, start=place)


def decode_values(
    workspace: "EightBitWorkspace", pages: Pages, runs: PageRuns, *, start: int
) -> None:
    """See `decode_eight_bit.decode_values`."""
    for place, rows in _blocks(pages, runs, start, None):
        reference_eight_bit.store_values(workspace, rows, start=place)


def _blocks(
    pages: Pages, runs: PageRuns, start: int, rope: RopeGrid | None
) -> Iterator[tuple[int, Tensor]]:
    """Rows, fp32 [heads, tokens, head_dim], and the place of the first of them."""
    for begin in range(0, runs.num_tokens, _BLOCK):
        block = runs.cut(begin, begin + _BLOCK)
        shape = (pages.num_heads, block.num_tokens, pages.head_dim)
        rows = torch.empty(shape, device=pages.device)
        decode(pages, block, rows, start=0, rope=rope)
        yield start + begin, rows


def _largest_of_codes(pages: CodedPages, runs: PageRuns) -> Tensor:
    """A bound of the rows' magnitudes, fp32 [heads, head_dim]."""
    used, places = np.unique(pages.slot_of_page[runs.page_id], return_inverse=True)
    centroids, widths = pages.codebooks.gather(used)
    book = torch.from_numpy(places).to(pages.device)
    largest = _of_codes(pages, runs) * widths[book]
    for stage in range(pages.spec.stages):
        largest = largest + centroids[:, :, stage].abs().amax(2)[book]
    if pages.refinement is not None:
        refined = pages.refinement.page_of[runs.page_id]
        has_one = torch.from_numpy(refined >= 0).to(pages.device)
        of_page = PageRuns(refined.clip(0), runs.first_token, runs.begin, runs.end)
        left = _of_codes(pages.refinement_pages(), of_page) * widths[book]
        largest = torch.where(has_one[:, None, None], largest + left, largest)
    return largest[torch.from_numpy(runs.end > runs.begin).to(pages.device)].amax(0)


def _of_codes(pages: CodedPages, runs: PageRuns) -> Tensor:
    """The largest level times the largest scale of each run: fp32 [runs, heads, head_dim]."""
    device = pages.device
    scales = pages.scales[torch.from_numpy(runs.page_id).to(device)]
    numbers = from_e4m3(scales) if scales.dtype == torch.uint8 else scales.float()
    slot = torch.arange(pages.page_size, device=device)
    begin, end = (torch.from_numpy(x).to(device)[:, None] for x in (runs.begin, runs.end))
    is_read = ((slot >= begin) & (slot < end))[:, None, :, None]
    largest = torch.where(is_read, numbers.abs(), 0.0).amax(2)
    groups = torch.from_numpy(pages.channel_groups).to(device).long()
    return largest[..., groups] * pages.spec.top
