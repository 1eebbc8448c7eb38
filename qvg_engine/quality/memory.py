"""Bytes of one stream's resident KV-cache against the length of its video.

The engine's own formulas, without an engine: pages at their peak, and the codebooks and refinement
pages that a stream reserves.
"""

from collections.abc import Callable, Sequence

import msgspec

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, PageFormat
from qvg_engine.block_manager.page_count import pages_for, peak_pages
from qvg_engine.cache import default_overheads
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.figures import MemoryCurve

SECONDS = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PAGE_SIZE = 64
_COMPUTE_BYTES = 2


class VideoShape(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model decides how its cache grows; lengths in latent frames.

    `latent_frames` says how many of them cover a number of pixel frames.
    """

    model: str
    geometry: CacheGeometry
    tokens_per_frame: int
    frames_per_chunk: int
    window_frames: int
    frames_per_second: int
    latent_frames: Callable[[int], int]

    def num_chunks(self, seconds: float) -> int:
        """Chunks of a video of this length."""
        num_frames = max(1, round(seconds * self.frames_per_second))
        return -(-self.latent_frames(num_frames) // self.frames_per_chunk)


def _wan_latent_frames(num_frames: int) -> int:
    """The first latent frame is one pixel frame, every other one four."""
    return 1 + -(-(num_frames - 1) // 4)


WAN_1_3B = VideoShape(
    model="Wan 1.3B, 832x480",
    geometry=CacheGeometry(num_layers=30, num_kv_heads=12, head_dim=128),
    tokens_per_frame=1560,
    frames_per_chunk=3,
    window_frames=21,
    frames_per_second=16,
    latent_frames=_wan_latent_frames,
)
"""Self-Forcing's network and its window of 21 latent frames."""


def shape_of(family: ModelFamily) -> VideoShape:
    """The shape of a model with a VAE; its own window, or that of `WAN_1_3B` if it has none."""
    settings, codec = family.settings, family.codec
    assert codec is not None, "a model without a VAE has no pixel frames"
    return VideoShape(
        model=family.name,
        geometry=family.geometry,
        tokens_per_frame=family.tokens_per_frame,
        frames_per_chunk=settings.frames_per_chunk,
        window_frames=settings.window_frames or WAN_1_3B.window_frames,
        frames_per_second=codec.frames_per_second,
        latent_frames=codec.latent_frames,
    )


def memory_curve(
    shape: VideoShape,
    page_format: PageFormat,
    *,
    windowed: bool,
    seconds: Sequence[float] = SECONDS,
) -> MemoryCurve:
    """Bytes of one stream with the engine's default settings, with a window or the full history."""
    formats = (LayerFormats(keys=page_format, values=page_format),)
    codebook_overhead, refinement_overhead = default_overheads(formats, windowed=windowed)
    layout = CacheLayout(
        geometry=shape.geometry,
        page_size=PAGE_SIZE,
        formats=formats,
        compute_itemsize=_COMPUTE_BYTES,
        codebook_overhead=codebook_overhead,
        max_live_codebooks=CodebookPolicy().max_live,
        refinement_overhead=refinement_overhead,
    )
    chunk_pages = pages_for(shape.frames_per_chunk * shape.tokens_per_frame, PAGE_SIZE)
    pages, codebooks = [], []
    for length in seconds:
        num_chunks = shape.num_chunks(length)
        num_pages = _peak(shape, num_chunks, page_size=PAGE_SIZE, windowed=windowed)
        num_tokens = _peak(shape, num_chunks, page_size=1, windowed=windowed)
        pages.append(num_pages * layout.page_bytes)
        codebooks.append(layout.set_bytes(num_tokens, chunk_pages=chunk_pages))
    return MemoryCurve(
        model=shape.model,
        name=page_format.name,
        window_frames=shape.window_frames if windowed else None,
        seconds=tuple(seconds),
        page_bytes=tuple(pages),
        codebook_bytes=tuple(codebooks),
    )


def _peak(shape: VideoShape, num_chunks: int, *, page_size: int, windowed: bool) -> int:
    return peak_pages(
        [shape.frames_per_chunk * shape.tokens_per_frame] * num_chunks,
        page_size=page_size,
        window_tokens=shape.window_frames * shape.tokens_per_frame if windowed else None,
    )
