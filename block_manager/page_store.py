"""The tensors that pages and codebooks live in: everything preallocated, every byte counted.

One page id, and one codebook slot, is valid for all layers. Which of them are in use is the block
manager's business.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookAction, SpanPlan
from qvg_engine.block_manager.codebooks import SpanFigures
from qvg_engine.block_manager.format import ElementType, PageFormat
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import (
    CodedPages,
    allocate_pages,
    consecutive_groups,
    encode_span,
    fit_codebook,
    half_split_groups,
)
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
        kmeans_iterations: how often centroids move at most when a codebook is fitted.

    Raises `ConfigError` for sizes that make no sense. On the CPU the system commits the memory only
    when a page is first written.
    """

    def __init__(
        self,
        layout: CacheLayout,
        *,
        num_pages: int,
        device: torch.device | str,
        dtype: torch.dtype,
        row_table: NDArray[np.int32] | None = None,
        kmeans_iterations: int = 8,
    ) -> None:
        if num_pages < 1:
            raise ConfigError(f"num_pages must be at least 1, got {num_pages}")
        assert (row_table is not None) == (layout.num_books > 0)
        self.layout = layout
        self.num_pages = num_pages
        self._device = torch.device(device)
        self._dtype = dtype
        self._row_table = row_table
        self._kmeans_iterations = kmeans_iterations
        self._layers = tuple(
            LayerPages(
                keys=self._allocate(pair.keys, is_key=True),
                values=self._allocate(pair.values, is_key=False),
            )
            for pair in layout.layers
        )

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

    def new_figures(self) -> SpanFigures:
        """Empty figures of one span, for `write` to fill."""
        books = self.layout.num_books
        formats = self.layout.coded_formats
        stages = max(f.codec.stages for f in formats if f.codec is not None)
        centroids = max(f.codec.centroids for f in formats if f.codec is not None)
        groups = stages * self.layout.geometry.num_kv_heads
        return SpanFigures(
            energy=np.zeros(books, np.float32),
            residual=np.zeros(books, np.float32),
            counts=np.zeros((books, groups, centroids), np.int32),
            num_centroids=np.zeros(books, np.int32),
        )

    def write(
        self,
        layer: int,
        page_ids: NDArray[np.int32],
        *,
        keys: Tensor,
        values: Tensor,
        span: SpanPlan | None = None,
        figures: SpanFigures | None = None,
    ) -> None:
        """Store one layer's K (before RoPE) and V of consecutive tokens.

        Args:
            layer: which layer.
            page_ids: the pages to fill, in order; the last page may stay part full.
            keys, values: [tokens, KV heads, head_dim], `tokens <= len(page_ids) * page_size`.
            span: which codebooks to fit or to use; needed where a format has codebooks.
            figures: takes what was seen of the span in this layer.

        Raises `NonFiniteError` for NaN or infinity where a codec would store it.
        """
        assert keys.shape == values.shape, (keys.shape, values.shape)
        pages = self._layers[layer]
        book = layer * self.layout.books_per_layer
        for part, rows, name in ((pages.keys, keys, "keys"), (pages.values, values, "values")):
            if isinstance(part, PlainPages):
                encode(part, page_ids, rows)
                continue
            assert span is not None
            self._encode(part, page_ids, rows, book, span, figures, f"{name} of layer {layer}")
            book += 1

    def _encode(
        self,
        pages: CodedPages,
        page_ids: NDArray[np.int32],
        rows: Tensor,
        book: int,
        span: SpanPlan,
        figures: SpanFigures | None,
        name: str,
    ) -> None:
        """Fit the codebook if that is due, then store the rows with it."""
        slot = int(span.slots[book])
        if span.actions[book] != CodebookAction.REUSE:
            warm_from = int(span.warm_from[book])
            fit_codebook(
                pages,
                rows,
                slot=slot,
                num_centroids=min(pages.spec.centroids, pages.codebooks.capacity(slot)),
                seed=book,
                warm_from=warm_from if warm_from >= 0 else None,
                iterations=self._kmeans_iterations,
                name=name,
            )
        seen = encode_span(pages, page_ids, rows, slot=slot, name=name)
        if figures is not None:
            figures.energy[book] = seen.energy.sum()
            figures.residual[book] = seen.residual_energy.sum()
            counts = seen.counts.reshape(-1, seen.counts.shape[-1])
            figures.counts[book, : counts.shape[0], : counts.shape[1]] = counts
            figures.num_centroids[book] = pages.codebooks.counts[slot]

    def _allocate(self, page_format: PageFormat, *, is_key: bool) -> Pages:
        geometry = self.layout.geometry
        heads, head_dim = geometry.num_kv_heads, geometry.head_dim
        try:
            if page_format.codec is None:
                dtype = (
                    torch.bfloat16 if page_format.element is ElementType.BFLOAT16 else self._dtype
                )
                shape = (self.num_pages, heads, self.page_size, head_dim)
                return PlainPages(torch.empty(shape, device=self._device, dtype=dtype))
            assert self._row_table is not None
            spec = page_format.codec.for_head_dim(head_dim)
            groups = half_split_groups if is_key else consecutive_groups
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
            )
        except (RuntimeError, MemoryError) as error:
            size = self.layout.num_bytes(self.num_pages)
            raise ConfigError(
                f"{size:,} bytes of pages cannot be allocated on {self._device}: give the "
                "KV-cache less memory"
            ) from error
