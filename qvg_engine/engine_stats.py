"""The figures of an engine."""

import msgspec

from qvg_engine.cache import Cache
from qvg_engine.decoder_slots import DecoderSlots
from qvg_engine.scheduler.stats import SchedulerStats
from qvg_engine.text_pool import TextPool


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


def measure(
    scheduler: SchedulerStats, *, cache: Cache, texts: TextPool, slots: DecoderSlots
) -> EngineStats:
    """The figures now, and at the peak that `cache` has recorded."""
    now, peak = cache.figures(), cache.peak
    return EngineStats(
        num_steps=scheduler.num_steps,
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        mean_streams_per_step=scheduler.mean_streams_per_step,
        pages_used=scheduler.num_pages_used,
        pages_total=cache.store.num_pages,
        kv_ratio_now=now.kv_ratio,
        kv_bytes_peak=peak.kv_bytes,
        kv_bytes_bf16=peak.bf16_bytes,
        kv_ratio=peak.kv_ratio,
        total_ratio=peak.total_ratio,
        codebook_bytes=peak.codebook_bytes,
        refinement_bytes=peak.refinement_bytes,
        workspace_bytes=peak.workspace_bytes,
        text_bytes=texts.num_bytes,
        decoder_bytes=slots.num_bytes,
        spilled_decoder_bytes=slots.num_spilled_bytes,
    )
