"""What a KV-cache is made of, and how a budget of bytes is divided into pages and codebooks."""

from bisect import bisect_right

import msgspec

from qvg_engine.block_manager.codebook_budget import CodebookBudget
from qvg_engine.block_manager.format import (
    CacheGeometry,
    LayerFormats,
    PageFormat,
    check_layer_formats,
    page_bytes,
)
from qvg_engine.errors import ConfigError

_CODEBOOK_ITEM_BYTES = 2


class CacheLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Geometry, page size and formats of a cache.

    `formats` are one pair for every layer, in order, or one pair for all of them; K, and V too, has
    codebooks in all layers or in none. `compute_itemsize` is the size in bytes of the dtype that
    the network computes in; `codebook_overhead` and `max_live_codebooks` bound the codebooks, see
    `CodebookBudget`.
    """

    geometry: CacheGeometry
    page_size: int
    formats: tuple[LayerFormats, ...]
    compute_itemsize: int
    codebook_overhead: float
    max_live_codebooks: int

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ConfigError(f"page_size must be at least 1, got {self.page_size}")
        num_layers = self.geometry.num_layers
        if len(self.formats) not in (1, num_layers):
            raise ConfigError(
                f"formats are of {len(self.formats)} layers: the model has {num_layers}; give a "
                "pair for every layer, or one for all"
            )
        check_layer_formats(self.formats)

    @property
    def layers(self) -> tuple[LayerFormats, ...]:
        """The formats of every layer, in order."""
        num_layers = self.geometry.num_layers
        return self.formats if len(self.formats) == num_layers else self.formats * num_layers

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, codebooks apart."""
        return page_bytes(
            self.geometry,
            page_size=self.page_size,
            formats=self.layers,
            compute_itemsize=self.compute_itemsize,
        )

    @property
    def coded_formats(self) -> tuple[PageFormat, ...]:
        """The format of every book: layer by layer, of K and of V where they have codebooks."""
        return tuple(page_format for pair in self.layers for page_format in pair.coded)

    @property
    def num_books(self) -> int:
        """Books: one a layer for each of K and V that has codebooks."""
        return len(self.coded_formats)

    @property
    def books_per_layer(self) -> int:
        """As many in every layer: 0, 1 or 2."""
        return len(self.formats[0].coded)

    @property
    def codebook_row_bytes(self) -> int:
        """Bytes of one row in all books."""
        row = self.geometry.num_kv_heads * self.geometry.head_dim * _CODEBOOK_ITEM_BYTES
        return self.num_books * row

    @property
    def budget(self) -> CodebookBudget | None:
        """What codebooks may take; None where no format has any."""
        formats = self.coded_formats
        if not formats:
            return None
        return CodebookBudget(
            overhead=self.codebook_overhead,
            max_live=self.max_live_codebooks,
            min_rows=max(page_format.codebook_rows(1) for page_format in formats),
            max_rows=max(page_format.most_codebook_rows for page_format in formats),
        )

    def codebook_rows(self, num_pages: int) -> int:
        """Rows of codebooks that so many pages, full of tokens, pay for; 0 without codebooks."""
        return self.budget.total_rows(num_pages * self.page_size) if self.budget else 0

    def num_bytes(self, num_pages: int) -> int:
        """Bytes of so many pages and of the codebooks that belong to them."""
        return num_pages * self.page_bytes + self.codebook_rows(num_pages) * self.codebook_row_bytes

    def num_pages_for(self, budget_bytes: int) -> int:
        """The most pages that fit, with their codebooks; `ConfigError` if not even one does."""
        if self.num_bytes(1) > budget_bytes:
            raise ConfigError(
                f"a page takes {self.num_bytes(1)} bytes but the budget for the KV-cache is "
                f"{budget_bytes}: raise it, or use a smaller page or format"
            )
        numbers = range(1, budget_bytes // self.page_bytes + 1)
        return bisect_right(numbers, budget_bytes, key=self.num_bytes)
