"""Rows of K or V as pages store them: through the engine's kernels, without an engine."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qvg_engine.block_manager.format import ElementType, PageFormat
from qvg_engine.kernels.codec import (
    CodecSpec,
    CodedPages,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    encode_span,
    fit_codebook,
    half_split_groups,
)
from qvg_engine.kernels.paged_attention import PageRuns, Pages, PlainPages, decode, encode

PAGE_SIZE = 64
KMEANS_ITERATIONS = 8
"""As many as the engine's default."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """`num_tokens` consecutive tokens in pages of their own, token n in slot n of all slots.

    bits_per_element: of codes, scales and ids, or of plain elements.
    codebook_bits: those of the codebook, per element of the tokens that were stored.
    """

    pages: Pages
    num_tokens: int
    bits_per_element: float
    codebook_bits: float

    def runs(self, *parts: slice) -> PageRuns:
        """The tokens of some ranges, in order; none of no range."""
        page = np.arange(self.pages.num_pages)
        first = page * PAGE_SIZE
        begin, end = np.zeros_like(page), np.minimum(PAGE_SIZE, self.num_tokens - first)
        whole = PageRuns(page, first, begin, end)
        cut = [whole.cut(0, 0), *(whole.cut(part.start, part.stop) for part in parts)]
        return PageRuns(
            *(
                np.concatenate([getattr(run, column) for run in cut])
                for column in ("page_id", "first_token", "begin", "end")
            )
        )

    def decoded(self) -> Tensor:
        """What is read again: fp32 [tokens, heads, head_dim]."""
        shape = (self.pages.num_heads, self.num_tokens, self.pages.head_dim)
        out = torch.empty(shape, dtype=torch.float32, device=self.pages.device)
        decode(self.pages, self.runs(slice(0, self.num_tokens)), out, start=0, rope=None)
        return out.transpose(0, 1)


def store_rows(
    rows: Tensor,
    page_format: PageFormat,
    *,
    is_key: bool,
    seed: int,
    fit_tokens: int | None = None,
) -> StoredRows:
    """Store rows [tokens, heads, head_dim] in new pages, with one codebook if the format has any.

    Args:
        rows: of one layer; K in the engine's order of channels, before RoPE.
        page_format: with as many centroids as the codebook shall have.
        is_key: whether the rows are of K, whose groups of channels are those of the published
            order.
        seed: of k-means.
        fit_tokens: fit the codebook to so many of the first tokens; None: to all.

    Raises `NonFiniteError` for NaN or infinity where a codec would store it.
    """
    num_tokens, num_heads, head_dim = rows.shape
    assert num_tokens > 0
    page_ids = np.arange(-(-num_tokens // PAGE_SIZE))
    if page_format.codec is None:
        bf16 = page_format.element is ElementType.BFLOAT16
        dtype = torch.bfloat16 if bf16 else rows.dtype
        shape = (len(page_ids), num_heads, PAGE_SIZE, head_dim)
        plain = PlainPages(torch.empty(shape, dtype=dtype, device=rows.device))
        encode(plain, page_ids, rows)
        return StoredRows(plain, num_tokens, 8.0 * dtype.itemsize, 0.0)
    spec = page_format.codec.for_head_dim(head_dim)
    pages = pages_like(rows, spec, num_pages=len(page_ids), is_key=is_key)
    fit_codebook(
        pages,
        rows[:fit_tokens],
        slot=0,
        num_centroids=spec.centroids,
        seed=seed,
        warm_from=None,
        iterations=KMEANS_ITERATIONS,
        name="keys" if is_key else "values",
    )
    encode_span(pages, page_ids, rows, slot=0, name="keys" if is_key else "values")
    slots = len(page_ids) * PAGE_SIZE * num_heads * head_dim
    bytes_stored = pages.codes.nbytes + pages.ids.nbytes + pages.scales.nbytes
    return StoredRows(
        pages,
        num_tokens,
        bits_per_element=8 * bytes_stored / slots,
        codebook_bits=8 * pages.codebooks.num_bytes / (num_tokens * num_heads * head_dim),
    )


def pages_like(
    rows: Tensor, spec: CodecSpec, *, num_pages: int, is_key: bool, num_slots: int = 1
) -> CodedPages:
    """Empty pages for rows [tokens, heads, head_dim] like these, with so many codebook slots.

    `spec` is one for heads of this size.
    """
    groups = half_split_groups if is_key else consecutive_groups
    return allocate_pages(
        spec,
        num_pages=num_pages,
        num_heads=rows.shape[1],
        page_size=PAGE_SIZE,
        head_dim=rows.shape[2],
        row_table=consecutive_slots(spec, num_slots),
        device=rows.device,
        channel_groups=groups(rows.shape[2], spec.group),
    )
