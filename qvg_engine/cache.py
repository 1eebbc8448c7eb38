"""The KV-cache of one engine: pages, their bookkeeping, the workspace, and what they take."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from qvg_engine.accounting import CacheAccount, CacheFigures
from qvg_engine.allocation import Allocation
from qvg_engine.attention_choice import choose_attention
from qvg_engine.backend_check import check_eight_bit
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.codebooks import Codebooks, CodebookSizes, SpanFigures
from qvg_engine.block_manager.commit import PendingCommit
from qvg_engine.block_manager.format import LayerFormats
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.page_count import pages_for
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.config import EngineConfig
from qvg_engine.kernels.device import device_of
from qvg_engine.kernels.paged_attention import EightBitWorkspace, Workspace, value_dtype_for
from qvg_engine.models.family import ModelFamily
from qvg_engine.scheduler.needs import Needs

FULL_HISTORY_WORKSPACE_TOKENS = 32_768
WINDOWED_OVERHEAD, FULL_HISTORY_OVERHEAD = 0.33, 0.09
"""Bits per element that codebooks and refinements together add, unless set otherwise, to a stream
with a window, and to one that keeps all its tokens."""
WINDOWED_REFINEMENT, FULL_HISTORY_REFINEMENT = 0.133, 0.025
"""What of it refinements take, in formats that have them."""

_SETS_PER_STREAM = 4


class Cache:
    """Everything is allocated here, once, from the settings and the model's geometry."""

    def __init__(self, family: ModelFamily, config: EngineConfig) -> None:
        """Raises `ConfigError` if the memory does not hold a single page, or these pages cannot
        have the attention that was asked for.
        """
        self.layout = cache_layout(family, config)
        num_pages = self.layout.num_pages_for(config.kv_memory)
        policy = config.codebooks.for_streams(windowed=family.settings.window_frames is not None)
        codebooks = _open_codebooks(self.layout, policy, num_pages, max_streams=config.max_streams)
        # First, so that what is said of memory for pages counts what is left.
        self.workspace = make_workspace(family, config)
        self.store = PageStore(
            self.layout,
            num_pages=num_pages,
            device=config.torch_device,
            dtype=config.torch_dtype,
            row_table=None if codebooks is None else codebooks.pool.row_table,
            policy=policy,
            refinement_of=None if codebooks is None else codebooks.refinements.refinement_of,
        )
        self.block_manager = BlockManager(num_pages, config.page_size, codebooks=codebooks)
        chunk_tokens = family.settings.frames_per_chunk * family.tokens_per_frame
        self.attention = choose_attention(
            config,
            [self.store.layer(layer) for layer in range(len(self.layout.layers))],
            self.workspace,
            queries=chunk_tokens,
        )
        self._chunk_pages = pages_for(chunk_tokens, config.page_size)
        self._account = CacheAccount(
            family.geometry,
            bytes_per_page=self.layout.page_bytes,
            bytes_per_codebook_row=self.layout.codebook_row_bytes,
            bytes_per_refinement=self.layout.refinement_page_bytes,
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
            refinement_pages=0 if codebooks is None else codebooks.refinements.num_refinements,
        )

    def codebook_needs(self, *, peak_tokens: int, num_sets: int) -> Needs:
        """What a stream reserves of the codebooks: `num_sets` sets for `peak_tokens` tokens.

        And of refinement pages: as many as the tokens pay for, up to those of a chunk a set.
        Nothing if it never keeps any. A short stream uses fewer slots than are counted here.
        """
        return codebook_needs(
            self.layout,
            peak_tokens=peak_tokens,
            num_sets=num_sets,
            chunk_pages=self._chunk_pages,
        )

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
            refinements=0 if codebooks is None else codebooks.refinements.num_reserved,
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


def codebook_needs(
    layout: CacheLayout, *, peak_tokens: int, num_sets: int, chunk_pages: int
) -> Needs:
    """What `Cache.codebook_needs` says, from the layout alone."""
    budget = layout.budget
    if budget is None or not num_sets or not peak_tokens:
        return Needs()
    tokens = max(1, peak_tokens // num_sets)
    refinements = layout.set_refinements(tokens, chunk_pages=chunk_pages)
    return Needs(
        codebook_slots=num_sets * budget.max_live,
        codebook_rows=num_sets * budget.rows_per_set(tokens),
        refinement_pages=num_sets * refinements,
    )


def pages_for_streams(layout: CacheLayout, needs: Needs, num_streams: int) -> int:
    """The fewest pages of an engine in which so many streams with such needs run at once.

    Codebooks and refinements come with the pages, in proportion, so that they may ask for more
    pages than the streams themselves.
    """
    budget = layout.budget
    if budget is None:
        return num_streams * needs.pages
    wanted = num_streams * needs.codebook_slots * budget.min_rows // budget.max_live

    def holds(num_pages: int) -> bool:
        rows = layout.codebook_rows(num_pages)
        refinements = layout.refinement_pages(num_pages * layout.page_size)
        return (
            num_pages >= num_streams * needs.pages
            and rows >= max(wanted, num_streams * needs.codebook_rows)
            and refinements >= num_streams * needs.refinement_pages
        )

    most = 1
    while not holds(most):
        most *= 2
    return bisect_left(range(most + 1), True, key=holds)


def cache_layout(family: ModelFamily, config: EngineConfig) -> CacheLayout:
    """What the settings make of the model's cache.

    Raises `ConfigError` for an allocation of another number of layers than the model's.
    """
    codebooks, refinements = default_overheads(
        config.layer_formats, windowed=family.settings.window_frames is not None
    )
    if isinstance(config.kv_format, Allocation):
        given = config.kv_format
        codebooks = codebooks if given.codebook_overhead is None else given.codebook_overhead
        refinements = given.refinement_overhead
    if config.codebook_overhead is not None:
        codebooks = config.codebook_overhead
    if config.refinement_overhead is not None:
        refinements = config.refinement_overhead
    return CacheLayout(
        geometry=family.geometry,
        page_size=config.page_size,
        formats=config.layer_formats,
        compute_itemsize=config.torch_dtype.itemsize,
        codebook_overhead=codebooks,
        max_live_codebooks=config.codebooks.max_live,
        refinement_overhead=refinements,
    )


def default_overheads(formats: Sequence[LayerFormats], *, windowed: bool) -> tuple[float, float]:
    """Bits per element of codebooks and of refinements.

    Pages are refined where all formats that can be are so by default.
    """
    total = WINDOWED_OVERHEAD if windowed else FULL_HISTORY_OVERHEAD
    coded = [page_format for pair in formats for page_format in pair.coded]
    if not coded or not all(page_format.refined for page_format in coded):
        return total, 0.0
    refinements = WINDOWED_REFINEMENT if windowed else FULL_HISTORY_REFINEMENT
    return total - refinements, refinements


def workspace_tokens(family: ModelFamily, config: EngineConfig) -> int:
    """Tokens that the workspace holds: what was set, or one window of the model's own size."""
    if config.workspace_tokens is not None:
        return config.workspace_tokens
    window = family.settings.window_frames
    if window is None:
        return FULL_HISTORY_WORKSPACE_TOKENS
    return min(FULL_HISTORY_WORKSPACE_TOKENS, window * family.tokens_per_frame)


def make_workspace(family: ModelFamily, config: EngineConfig) -> Workspace | EightBitWorkspace:
    """What attention decodes pages to: with "eight-bit" in INT8 and E4M3, else as it computes.

    Raises `ConfigError` for heads that 8-bit attention does not take.
    """
    geometry, device = family.geometry, config.torch_device
    num_heads, head_dim = geometry.num_kv_heads, geometry.head_dim
    max_tokens = workspace_tokens(family, config)
    if config.attention_backend == "eight-bit":
        check_eight_bit(head_dim, device)
        return EightBitWorkspace(
            num_heads=num_heads, head_dim=head_dim, max_tokens=max_tokens, device=device
        )
    return Workspace(
        num_heads=num_heads,
        head_dim=head_dim,
        max_tokens=max_tokens,
        device=device,
        dtype=config.torch_dtype,
    )


def workspace_bytes(family: ModelFamily, config: EngineConfig) -> int:
    """Bytes of `make_workspace`, which is not made for it."""
    geometry = family.geometry
    num_heads, head_dim = geometry.num_kv_heads, geometry.head_dim
    max_tokens = workspace_tokens(family, config)
    if config.attention_backend == "eight-bit":
        return EightBitWorkspace.bytes_for(
            num_heads=num_heads,
            head_dim=head_dim,
            max_tokens=max_tokens,
            value_dtype=value_dtype_for(device_of(config.torch_device)),
        )
    return Workspace.bytes_for(
        num_heads=num_heads, head_dim=head_dim, max_tokens=max_tokens, dtype=config.torch_dtype
    )


def _open_codebooks(
    layout: CacheLayout, policy: CodebookPolicy, num_pages: int, *, max_streams: int
) -> Codebooks | None:
    budget = layout.budget
    if budget is None:
        return None
    specs = [page_format.codec for page_format in layout.coded_formats if page_format.codec]
    num_rows = layout.codebook_rows(num_pages)
    most_sets = num_rows // budget.min_rows
    num_sets = max(1, min(most_sets, _SETS_PER_STREAM * max_streams))
    sizes = CodebookSizes(
        num_books=layout.num_books,
        num_groups=layout.geometry.num_kv_heads * max(spec.stages for spec in specs),
        num_centroids=max(spec.centroids for spec in specs),
        num_slots=num_sets * budget.max_live,
        min_rows=budget.min_rows,
        max_rows=min(budget.max_rows, num_rows),
        num_rows=num_rows,
        num_refinements=layout.refinement_pages(num_pages * layout.page_size),
    )
    return Codebooks(sizes, policy, num_pages=num_pages)
