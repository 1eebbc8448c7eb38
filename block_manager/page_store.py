"""The tensors that pages and codebooks live in: everything preallocated, every byte counted.

One page id, and one codebook slot, is valid for all layers. Which of them are in use is the block
manager's business.
"""

from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookAction, CodebookPolicy, SpanPlan
from qvg_engine.block_manager.format import ElementType, PageFormat
from qvg_engine.block_manager.span_report import SpanReport
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import (
    CodedPages,
    allocate_pages,
    begin_encode,
    consecutive_groups,
    decode,
    fit_codebook,
    half_split_groups,
)
from qvg_engine.kernels.free_memory import free_bytes, refuse, usable_bytes
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention.encode import encode
from qvg_engine.kernels.paged_attention.pages import LayerPages, Pages, PlainPages


class PageStore:
    """K and V of `num_pages` pages, per layer and per KV head, and the codebooks they refer to.

    Args:
        layout: geometry, page size and formats.
        num_pages: pages to allocate.
        device: where they live.
        dtype: the compute dtype.
        row_table: int32 [slots, rows], which rows each codebook slot has; kept by the codebook
            pool, read here. None where no format has codebooks.
        policy: how codebooks are fitted; the default one unless given.
        refinement_of: int32 [pages], the refinement page of each page, -1 for none; kept by the
            refinement pool, read here. None where no page is ever refined.

    Raises `ConfigError` for sizes that make no sense, or that the device has no memory for. On the
    CPU the system commits the memory only when a page is first written.
    """

    def __init__(
        self,
        layout: CacheLayout,
        *,
        num_pages: int,
        device: torch.device | str,
        dtype: torch.dtype,
        row_table: NDArray[np.int32] | None = None,
        policy: CodebookPolicy | None = None,
        refinement_of: NDArray[np.int32] | None = None,
    ) -> None:
        if num_pages < 1:
            raise ConfigError(f"num_pages must be at least 1, got {num_pages}")
        assert (row_table is not None) == (layout.num_books > 0)
        self.layout = layout
        self.num_pages = num_pages
        self._device = torch.device(device)
        self._dtype = dtype
        self._row_table = row_table
        self._refinement_of = refinement_of
        self._policy = policy or CodebookPolicy()
        free = free_bytes(self._device)
        try:
            self._layers = tuple(
                LayerPages(
                    keys=self._allocate(pair.keys, is_key=True),
                    values=self._allocate(pair.values, is_key=False),
                )
                for pair in layout.layers
            )
        except (RuntimeError, MemoryError) as error:
            raise self._refuse(free) from error

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.layout.page_size

    @property
    def num_bytes(self) -> int:
        """Bytes allocated, all layers together, codebooks included."""
        return sum(layer.keys.num_bytes + layer.values.num_bytes for layer in self._layers)

    def layer(self, layer: int) -> LayerPages:
        """The pages of one layer, for attention."""
        return self._layers[layer]

    def new_report(self) -> SpanReport:
        """An empty report of one span, for `write` to fill."""
        return SpanReport(self.layout)

    def write(
        self,
        layer: int,
        page_ids: NDArray[np.int32],
        *,
        keys: Tensor,
        values: Tensor,
        span: SpanPlan | None = None,
        report: SpanReport | None = None,
        seen: PageRuns | None = None,
        refined: NDArray[np.int32] | None = None,
    ) -> None:
        """Store one layer's K (before RoPE) and V of consecutive tokens.

        Args:
            layer: which layer.
            page_ids: the pages to fill, in order; the last page may stay part full.
            keys, values: [tokens, KV heads, head_dim], `tokens <= len(page_ids) * page_size`.
            span: which codebooks to fit or to use; needed where a format has codebooks.
            report: takes what was seen of the span in this layer.
            seen: tokens before these, which a codebook that has to be fitted is fitted to, too.
            refined: the refinement page of each of `page_ids`, -1 for none; where pages have a
                codec. What these refined is lost.

        Raises `NonFiniteError` for NaN or infinity where a codec would store it; on a GPU the
        report does so when it is read, and the host does not wait here.
        """
        assert keys.shape == values.shape, (keys.shape, values.shape)
        pages = self._layers[layer]
        book = layer * self.layout.books_per_layer
        with nullcontext() if report is None else report.checking():
            for part, rows, name in ((pages.keys, keys, "keys"), (pages.values, values, "values")):
                if isinstance(part, PlainPages):
                    encode(part, page_ids, rows)
                    continue
                assert span is not None
                slot = int(span.slots[book])
                self._fit(part, rows, book, span, seen, f"{name} of layer {layer}")
                figures = begin_encode(
                    part,
                    page_ids,
                    rows,
                    slot=slot,
                    name=f"{name} of layer {layer}",
                    refined=refined,
                )
                if report is not None:
                    report.note(book, figures, int(part.codebooks.counts[slot]))
                book += 1

    def _fit(
        self,
        pages: CodedPages,
        rows: Tensor,
        book: int,
        span: SpanPlan,
        seen: PageRuns | None,
        name: str,
    ) -> None:
        """Fit the codebook, if that is due, to the rows and to tokens before them."""
        slot, warm_from = int(span.slots[book]), int(span.warm_from[book])
        if span.actions[book] == CodebookAction.REUSE:
            return
        if seen is not None and pages.spec.stages:
            rows = torch.cat([self._read_back(pages, seen), rows])
        fit_codebook(
            pages,
            rows,
            slot=slot,
            num_centroids=min(pages.spec.centroids, pages.codebooks.capacity(slot)),
            seed=book,
            warm_from=warm_from if warm_from >= 0 else None,
            iterations=self._policy.kmeans_iterations,
            name=name,
        )

    def _read_back(self, pages: CodedPages, seen: PageRuns) -> Tensor:
        """Some of these tokens, fp32 [tokens, heads, head_dim], not rotated."""
        runs = seen.spread(self._policy.fit_tokens)
        shape = (pages.num_heads, runs.num_tokens, pages.head_dim)
        out = torch.empty(shape, dtype=torch.float32, device=pages.device)
        decode(pages, runs, out, start=0, rope=None)
        return out.transpose(0, 1)

    def _allocate(self, page_format: PageFormat, *, is_key: bool) -> Pages:
        geometry = self.layout.geometry
        heads, head_dim = geometry.num_kv_heads, geometry.head_dim
        if page_format.codec is None:
            dtype = torch.bfloat16 if page_format.element is ElementType.BFLOAT16 else self._dtype
            shape = (self.num_pages, heads, self.page_size, head_dim)
            return PlainPages(torch.empty(shape, device=self._device, dtype=dtype))
        assert self._row_table is not None
        spec = page_format.codec.for_head_dim(head_dim)
        groups = half_split_groups if is_key else consecutive_groups
        num_refinements = self.layout.refinement_pages(self.num_pages * self.page_size)
        return allocate_pages(
            spec,
            num_pages=self.num_pages,
            num_heads=heads,
            page_size=self.page_size,
            head_dim=head_dim,
            row_table=self._row_table,
            num_rows=self.layout.codebook_rows(self.num_pages),
            device=self._device,
            channel_groups=groups(head_dim, spec.group),
            refinement_pages=num_refinements,
            refined_page_of=self._refinement_of if num_refinements else None,
        )

    def _refuse(self, free: int) -> ConfigError:
        """The error for pages that could not be allocated where so many bytes were free."""
        num_bytes, smallest = (self.layout.num_bytes(count) for count in (self.num_pages, 1))
        fits = usable_bytes(num_bytes, free)
        return refuse(
            "pages",
            num_bytes,
            free=free,
            device=self._device,
            advice=f"give kv_memory of at most {fits:,}"
            if fits >= smallest
            else f"there is no room for one page of {smallest:,}",
        )
