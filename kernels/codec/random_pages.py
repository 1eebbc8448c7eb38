"""Pages of random contents, made on their device: for measuring, where it does not matter what they
hold, but must not be NaN or point nowhere.
"""

import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.codec.e4m3 import to_e4m3
from qvg_engine.kernels.codec.packing import pack
from qvg_engine.kernels.codec.pages import CodedPages, allocate_pages, consecutive_slots
from qvg_engine.kernels.page_runs import PageRuns


def random_like(pages: CodedPages, *, num_pages: int, device: torch.device) -> CodedPages:
    """So many pages as these are, with one codebook; if these may be refined, one page is.

    Of `pages`, which may be on the "meta" device, only the format and the shape are looked at.
    """
    made = allocate_pages(
        pages.spec,
        num_pages=num_pages,
        num_heads=pages.num_heads,
        page_size=pages.page_size,
        head_dim=pages.head_dim,
        row_table=consecutive_slots(pages.spec, 1),
        device=device,
        channel_groups=pages.channel_groups,
        refinement_pages=0 if pages.refinement is None else 1,
    )
    fill_randomly(made)
    return made


def fill_randomly(pages: CodedPages) -> None:
    """Numbers around 0 of a magnitude of about 1 in all pages, with the first codebook.

    The first page has the first refinement, if there are any.
    """
    spec, device = pages.spec, pages.device
    # The caller's random numbers stay as they are.
    generator = torch.Generator(device).manual_seed(0)

    def draw(out: Tensor, low: int, high: int) -> Tensor:
        return out.random_(low, high, generator=generator)

    if spec.trellis or len(spec.levels) == 1 << spec.bits:
        draw(pages.codes, 0, 256)
    else:
        codes = pages.codes.new_empty((*pages.codes.shape[:3], pages.head_dim))
        pages.codes.copy_(pack(draw(codes, 0, len(spec.levels)), spec.bits))
    draw(pages.ids, 0, spec.centroids)
    # Scales between 2**-5 and 2, as E4M3.
    draw(pages.scales, 0x10, 0x40)
    rows = torch.randn(pages.codebooks.rows.shape, generator=generator, device=device)
    if spec.channel_widths:
        rows[0] = rows[0].abs().clamp(0.5, 2)
    stored = to_e4m3(rows) if pages.codebooks.rows.dtype == torch.uint8 else rows
    pages.codebooks.rows.copy_(stored)
    pages.codebooks.counts[:] = spec.centroids
    pages.slot_of_page[:] = 0
    if pages.refinement is not None:
        draw(pages.refinement.codes, 0, 256)
        draw(pages.refinement.scales, 0x08, 0x20)
        pages.refinement.page_of[0] = 0


def shuffled_runs(num_tokens: int, *, page_size: int) -> PageRuns:
    """So many tokens in order, in shuffled pages from 0 on."""
    num_pages = -(-num_tokens // page_size)
    first = np.arange(num_pages) * page_size
    return PageRuns(
        np.random.default_rng(0).permutation(num_pages).astype(np.int64),
        first,
        np.zeros(num_pages, np.int64),
        np.minimum(page_size, num_tokens - first),
    )
