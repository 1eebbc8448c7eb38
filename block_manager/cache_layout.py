"""What a KV-cache is made of, and how a budget of bytes is divided into pages and codebooks."""

from bisect import bisect_right
from fractions import Fraction

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
from qvg_engine.kernels.codec.refinement import REFINEMENT


class CacheLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Geometry, page size and formats of a cache.

    `formats` are one pair for every layer, in order, or one pair for all of them; K, and V too, has
    codebooks in all layers or in none. `compute_itemsize` is the size in bytes of the dtype that
    the network computes in; `codebook_overhead` and `max_live_codebooks` bound the codebooks, see
    `CodebookBudget`; `refinement_overhead` are the bits per element that second pages of the newest
    tokens may add.
    """

    geometry: CacheGeometry
    page_size: int
    formats: tuple[LayerFormats, ...]
    compute_itemsize: int
    codebook_overhead: float
    max_live_codebooks: int
    refinement_overhead: float = 0.0

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ConfigError(f"page_size must be at least 1, got {self.page_size}")
        if not 0 <= self.refinement_overhead <= 16:
            raise ConfigError(
                f"refinement_overhead is {self.refinement_overhead!r}: give bits per element, 0 to "
                "16"
            )
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
        return self._row_items * sum(self._centroid_bytes)

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
            row_bits=8 * sum(self._centroid_bytes) / len(formats),
        )

    @property
    def _row_items(self) -> int:
        """Numbers of one token in one book."""
        return self.geometry.num_kv_heads * self.geometry.head_dim

    @property
    def _centroid_bytes(self) -> list[int]:
        """Bytes of a codebook's number, book by book."""
        return [f.codec.centroid_bytes for f in self.coded_formats if f.codec is not None]

    def codebook_rows(self, num_pages: int) -> int:
        """Rows of codebooks that so many pages, full of tokens, pay for; 0 without codebooks."""
        return self.budget.total_rows(num_pages * self.page_size) if self.budget else 0

    @property
    def refinement_page_bytes(self) -> int:
        """Bytes of one refinement page."""
        head_dim = self.geometry.head_dim
        row_bytes = REFINEMENT.for_head_dim(head_dim).row_bytes(head_dim)
        rows = self.geometry.num_kv_heads * self.page_size
        return rows * row_bytes * self.num_books

    def refinement_pages(self, num_tokens: int) -> int:
        """Refinement pages that `num_tokens` tokens, of one stream or of all, pay for."""
        if not self.refinement_overhead or not self.coded_formats:
            return 0
        bits = Fraction(self.refinement_overhead) * num_tokens * self._row_items * self.num_books
        return int(bits / (8 * self.refinement_page_bytes))

    def set_refinements(self, num_tokens: int, *, chunk_pages: int) -> int:
        """Refinement pages of a branch that keeps so many tokens: those of a chunk at most."""
        return min(chunk_pages, self.refinement_pages(num_tokens))

    def set_bytes(self, num_tokens: int, *, chunk_pages: int) -> int:
        """Bytes of codebooks and refinements that a branch of so many tokens reserves."""
        rows = self.budget.rows_per_set(num_tokens) if self.budget else 0
        refinements = self.set_refinements(num_tokens, chunk_pages=chunk_pages)
        return rows * self.codebook_row_bytes + refinements * self.refinement_page_bytes

    def num_bytes(self, num_pages: int) -> int:
        """Bytes of so many pages and of the codebooks and refinements that belong to them."""
        refinements = self.refinement_pages(num_pages * self.page_size)
        return (
            num_pages * self.page_bytes
            + self.codebook_rows(num_pages) * self.codebook_row_bytes
            + refinements * self.refinement_page_bytes
        )

    def num_pages_for(self, budget_bytes: int) -> int:
        """The most pages that fit, with what belongs to them; `ConfigError` if none does."""
        if self.num_bytes(1) > budget_bytes:
            raise ConfigError(
                f"a page takes {self.num_bytes(1)} bytes but the budget for the KV-cache is "
                f"{budget_bytes}: raise it, or use a smaller page or format"
            )
        numbers = range(1, budget_bytes // self.page_bytes + 1)
        return bisect_right(numbers, budget_bytes, key=self.num_bytes)
