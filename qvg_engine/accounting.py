"""What the KV-cache takes, counted at the step of peak page use."""

import msgspec

from qvg_engine.block_manager.format import CacheGeometry

_BF16_BYTES = 2


class CacheFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the KV-cache at one moment.

    `pages_used` pages take `kv_bytes`, padding included; `bf16_bytes` is what the tokens then
    resident would take in bf16 without pages; `codebook_bytes` are reserved codebooks,
    `refinement_bytes` reserved second pages of the newest tokens.
    """

    pages_used: int = 0
    kv_bytes: int = 0
    bf16_bytes: int = 0
    codebook_bytes: int = 0
    refinement_bytes: int = 0
    workspace_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """Of pages, codebooks and refinements."""
        return self.kv_bytes + self.codebook_bytes + self.refinement_bytes

    @property
    def kv_ratio(self) -> float:
        """bf16 bytes over the bytes that are stored instead; 0 while there are none."""
        return _ratio(self.bf16_bytes, self.stored_bytes)

    @property
    def total_ratio(self) -> float:
        """The same with the workspace counted too."""
        return _ratio(self.bf16_bytes, self.stored_bytes + self.workspace_bytes)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's figures: now, and (`kv_*`, ratios, bytes) at the step of peak page use.

    `kv_ratio_now` is the compression at this moment; a ratio without pages is 0.
    `spilled_decoder_bytes` are in host memory.
    """

    num_steps: int
    num_waiting: int
    num_running: int
    mean_streams_per_step: float
    pages_used: int
    pages_total: int
    kv_ratio_now: float
    kv_bytes_peak: int
    kv_bytes_bf16: int
    kv_ratio: float
    total_ratio: float
    codebook_bytes: int
    refinement_bytes: int
    workspace_bytes: int
    text_bytes: int
    decoder_bytes: int
    spilled_decoder_bytes: int = 0


class CacheAccount:
    """Measures the cache after each step and remembers the peak."""

    def __init__(
        self,
        geometry: CacheGeometry,
        *,
        bytes_per_page: int,
        bytes_per_codebook_row: int,
        bytes_per_refinement: int,
        workspace_bytes: int,
    ) -> None:
        self._bf16_bytes_per_token = 2 * _BF16_BYTES * geometry.elements(1)
        self._bytes_per_page = bytes_per_page
        self._bytes_per_codebook_row = bytes_per_codebook_row
        self._bytes_per_refinement = bytes_per_refinement
        self._workspace_bytes = workspace_bytes
        self.peak = CacheFigures(workspace_bytes=workspace_bytes)

    def measure(
        self, *, pages_used: int, num_tokens: int, codebook_rows: int, refinements: int
    ) -> CacheFigures:
        """The figures of `num_tokens` resident tokens in `pages_used` pages.

        `codebook_rows` and `refinements` (pages) are reserved, whether anything is in them or not.
        """
        return CacheFigures(
            pages_used=pages_used,
            kv_bytes=pages_used * self._bytes_per_page,
            bf16_bytes=num_tokens * self._bf16_bytes_per_token,
            codebook_bytes=codebook_rows * self._bytes_per_codebook_row,
            refinement_bytes=refinements * self._bytes_per_refinement,
            workspace_bytes=self._workspace_bytes,
        )

    def record(self, figures: CacheFigures) -> None:
        """Keep the figures as the peak."""
        self.peak = figures


def _ratio(whole: int, part: int) -> float:
    return whole / part if part else 0.0
