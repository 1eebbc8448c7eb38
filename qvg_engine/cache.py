"""The KV-cache of one engine: pages, their bookkeeping, the workspace, and what they take."""

from qvg_engine.accounting import CacheAccount, CacheFigures
from qvg_engine.block_manager.format import get_format
from qvg_engine.block_manager.manager import BlockManager
from qvg_engine.block_manager.page_store import PageStore, num_pages_for
from qvg_engine.config import EngineConfig
from qvg_engine.kernels.paged_attention import Workspace
from qvg_engine.models.family import ModelFamily

FULL_HISTORY_WORKSPACE_TOKENS = 32_768


class Cache:
    """Everything is allocated here, once, from the settings and the model's geometry."""

    def __init__(self, family: ModelFamily, config: EngineConfig) -> None:
        """Raises `ConfigError` if the memory does not hold a single page."""
        self.store = _allocate_store(family, config)
        self.block_manager = BlockManager(self.store.num_pages, config.page_size)
        self.workspace = Workspace(
            num_heads=family.geometry.num_kv_heads,
            head_dim=family.geometry.head_dim,
            max_tokens=workspace_tokens(family, config),
            device=config.torch_device,
            dtype=config.torch_dtype,
        )
        self._account = CacheAccount(
            family.geometry,
            bytes_per_page=self.store.bytes_per_page,
            workspace_bytes=self.workspace.num_bytes,
        )

    @property
    def peak(self) -> CacheFigures:
        """The figures of the recorded moment with the most pages in use."""
        return self._account.peak

    def figures(self) -> CacheFigures:
        """The figures now."""
        return self._account.measure(
            pages_used=self.block_manager.num_used,
            num_tokens=self.block_manager.num_live_tokens(),
        )

    def record_peak(self) -> None:
        """Remember this moment if more pages are in use than ever before."""
        if self.block_manager.num_used > self._account.peak.pages_used:
            self._account.record(self.figures())


def workspace_tokens(family: ModelFamily, config: EngineConfig) -> int:
    """Tokens that the workspace holds: what was set, or one window of the model's own size."""
    if config.workspace_tokens is not None:
        return config.workspace_tokens
    window = family.settings.window_frames
    if window is None:
        return FULL_HISTORY_WORKSPACE_TOKENS
    return min(FULL_HISTORY_WORKSPACE_TOKENS, window * family.tokens_per_frame)


def _allocate_store(family: ModelFamily, config: EngineConfig) -> PageStore:
    key_format = get_format(config.kv_format)
    value_format = get_format(config.value_format or config.kv_format)
    num_pages = num_pages_for(
        config.kv_memory,
        geometry=family.geometry,
        page_size=config.page_size,
        key_format=key_format,
        value_format=value_format,
        dtype=config.torch_dtype,
    )
    return PageStore(
        geometry=family.geometry,
        page_size=config.page_size,
        key_format=key_format,
        value_format=value_format,
        num_pages=num_pages,
        device=config.torch_device,
        dtype=config.torch_dtype,
    )
