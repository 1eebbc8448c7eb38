"""The KV-cache of one engine: pages, their bookkeeping, the workspace, and what they take."""

from collections.abc import Iterable, Mapping

from qvg_engine.accounting import CacheAccount, CacheFigures
from qvg_engine.allocation import Allocation
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebooks import Codebooks, CodebookSizes, SpanFigures
from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.config import EngineConfig
from qvg_engine.kernels.paged_attention import Workspace
from qvg_engine.models.family import ModelFamily
from qvg_engine.scheduler.needs import Needs

FULL_HISTORY_WORKSPACE_TOKENS = 32_768
WINDOWED_OVERHEAD = 0.33
"""Bits per element that codebooks may add to a stream with a window, unless set otherwise."""
FULL_HISTORY_OVERHEAD = 0.09
"""The same for a stream that keeps all its tokens."""

_SETS_PER_STREAM = 4


class Cache:
    """Everything is allocated here, once, from the settings and the model's geometry."""

    def __init__(self, family: ModelFamily, config: EngineConfig) -> None:
        """Raises `ConfigError` if the memory does not hold a single page."""
        self.layout = cache_layout(family, config)
        num_pages = self.layout.num_pages_for(config.kv_memory)
        codebooks = _open_codebooks(self.layout, config, num_pages)
        self.store = PageStore(
            self.layout,
            num_pages=num_pages,
            device=config.torch_device,
            dtype=config.torch_dtype,
            row_table=None if codebooks is None else codebooks.pool.row_table,
            kmeans_iterations=config.codebooks.kmeans_iterations,
        )
        self.block_manager = BlockManager(num_pages, config.page_size, codebooks=codebooks)
        self.workspace = Workspace(
            num_heads=family.geometry.num_kv_heads,
            head_dim=family.geometry.head_dim,
            max_tokens=workspace_tokens(family, config),
            device=config.torch_device,
            dtype=config.torch_dtype,
        )
        self._account = CacheAccount(
            family.geometry,
            bytes_per_page=self.layout.page_bytes,
            bytes_per_codebook_row=self.layout.codebook_row_bytes,
            workspace_bytes=self.workspace.num_bytes,
        )

    @property
    def capacity(self) -> Needs:
        """What all streams together may hold of it."""
        codebooks = self.block_manager.codebooks
        return Needs(
            pages=self.store.num_pages,
            codebook_slots=0 if codebooks is None else codebooks.pool.num_slots,
            codebook_rows=0 if codebooks is None else codebooks.pool.num_rows,
        )

    def codebook_needs(self, *, peak_tokens: int, num_sets: int) -> Needs:
        """What a stream reserves of the codebooks: `num_sets` sets for `peak_tokens` tokens.

        Nothing if it never keeps any. A short stream uses fewer slots than are counted here.
        """
        budget = self.layout.budget
        if budget is None or not num_sets or not peak_tokens:
            return Needs()
        rows = budget.rows_per_set(max(1, peak_tokens // num_sets))
        return Needs(codebook_slots=num_sets * budget.max_live, codebook_rows=num_sets * rows)

    @property
    def peak(self) -> CacheFigures:
        """The figures of the recorded moment with the most pages in use."""
        return self._account.peak

    def figures(self) -> CacheFigures:
        """The figures now."""
        codebooks = self.block_manager.codebooks
        return self._account.measure(
            pages_used=self.block_manager.num_used,
            num_tokens=self.block_manager.num_live_tokens(),
            codebook_rows=0 if codebooks is None else codebooks.pool.num_reserved_rows,
        )

    def record_spans(
        self, commits: Iterable[PendingCommit], figures: Mapping[int, SpanFigures]
    ) -> None:
        """Note what was seen of commits that are to be published; `figures` by commit id."""
        codebooks = self.block_manager.codebooks
        # Without centroids there is nothing that could wear out.
        has_centroids = any(f.codec and f.codec.stages for f in self.layout.coded_formats)
        if codebooks is None or not has_centroids:
            return
        for commit in commits:
            assert commit.span is not None
            codebooks.record(commit.span, figures[commit.commit_id])

    def record_peak(self) -> None:
        """Remember this moment if more pages are in use than ever before."""
        if self.block_manager.num_used > self._account.peak.pages_used:
            self._account.record(self.figures())


def cache_layout(family: ModelFamily, config: EngineConfig) -> CacheLayout:
    """What the settings make of the model's cache.

    Raises `ConfigError` for an allocation of another number of layers than the model's.
    """
    overhead = config.codebook_overhead
    if overhead is None and isinstance(config.kv_format, Allocation):
        overhead = config.kv_format.codebook_overhead
    if overhead is None:
        windowed = family.settings.window_frames is not None
        overhead = WINDOWED_OVERHEAD if windowed else FULL_HISTORY_OVERHEAD
    return CacheLayout(
        geometry=family.geometry,
        page_size=config.page_size,
        formats=config.layer_formats,
        compute_itemsize=config.torch_dtype.itemsize,
        codebook_overhead=overhead,
        max_live_codebooks=config.codebooks.max_live,
    )


def workspace_tokens(family: ModelFamily, config: EngineConfig) -> int:
    """Tokens that the workspace holds: what was set, or one window of the model's own size."""
    if config.workspace_tokens is not None:
        return config.workspace_tokens
    window = family.settings.window_frames
    if window is None:
        return FULL_HISTORY_WORKSPACE_TOKENS
    return min(FULL_HISTORY_WORKSPACE_TOKENS, window * family.tokens_per_frame)


def _open_codebooks(layout: CacheLayout, config: EngineConfig, num_pages: int) -> Codebooks | None:
    budget = layout.budget
    if budget is None:
        return None
    specs = [page_format.codec for page_format in layout.coded_formats if page_format.codec]
    num_rows = layout.codebook_rows(num_pages)
    most_sets = num_rows // budget.min_rows
    num_sets = max(1, min(most_sets, _SETS_PER_STREAM * config.max_streams))
    sizes = CodebookSizes(
        num_books=layout.num_books,
        num_groups=layout.geometry.num_kv_heads * max(spec.stages for spec in specs),
        num_centroids=max(spec.centroids for spec in specs),
        num_slots=num_sets * budget.max_live,
        min_rows=budget.min_rows,
        max_rows=min(budget.max_rows, num_rows),
        num_rows=num_rows,
    )
    return Codebooks(sizes, config.codebooks, num_pages=num_pages)
