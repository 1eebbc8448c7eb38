"""What a KV-cache is made of, and how a budget of bytes is divided into pages and codebooks."""

from bisect import bisect_right
from fractions import Fraction

import msgspec

from qvg_engine.block_manager.codebook_budget import CodebookBudget
from qvg_engine.block_manager.format import CacheGeometry, PageFormat, page_bytes
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec.refinement import REFINEMENT


class CacheLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Geometry, page size and formats of a cache.

    `compute_itemsize` is the size in bytes of the dtype that the network computes in;
    `codebook_overhead` and `max_live_codebooks` bound the codebooks, see `CodebookBudget`;
    `refinement_overhead` are the bits per element that second pages of the newest tokens may add.
    """

    geometry: CacheGeometry
    page_size: int
    key_format: PageFormat
    value_format: PageFormat
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

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, codebooks apart."""
        return page_bytes(
            self.geometry,
            page_size=self.page_size,
            key_format=self.key_format,
            value_format=self.value_format,
            compute_itemsize=self.compute_itemsize,
        )

    @property
    def coded_formats(self) -> tuple[PageFormat, ...]:
        """Those of K and V, in this order, that have codebooks."""
        return tuple(f for f in (self.key_format, self.value_format) if f.codec is not None)

    @property
    def num_books(self) -> int:
        """Books: one a layer for each of K and V that has codebooks."""
        return self.geometry.num_layers * len(self.coded_formats)

    @property
    def codebook_row_bytes(self) -> int:
        """Bytes of one row in all books."""
        items = self.geometry.num_layers * self.geometry.num_kv_heads * self.geometry.head_dim
        return items * sum(self._centroid_bytes)

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
    def _centroid_bytes(self) -> list[int]:
        """Bytes of a codebook's number, of those of K and V that have codebooks."""
        return [f.codec.centroid_bytes for f in self.coded_formats if f.codec is not None]

    def codebook_rows(self, num_pages: int) -> int:
        """Rows of codebooks that so many pages, full of tokens, pay for; 0 without codebooks."""
        return self.budget.total_rows(num_pages * self.page_size) if self.budget else 0

    @property
    def refinement_page_bytes(self) -> int:
        """Bytes of one refinement page."""
        head_dim = self.geometry.head_dim
        row_bytes = REFINEMENT.for_head_dim(head_dim).row_bytes(head_dim)
        rows = self.geometry.num_layers * self.geometry.num_kv_heads * self.page_size
        return rows * row_bytes * len(self.coded_formats)

    def refinement_pages(self, num_tokens: int) -> int:
        """Refinement pages that `num_tokens` tokens, of one stream or of all, pay for."""
        if not self.refinement_overhead or not self.coded_formats:
            return 0
        elements = self.geometry.elements(num_tokens) * len(self.coded_formats)
        bits = Fraction(self.refinement_overhead) * elements
        return int(bits / (8 * self.refinement_page_bytes))

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
