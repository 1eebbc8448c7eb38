"""How near a format's frames are to those of `bf16` pages, through the whole engine.

Only the first chunks after the cache is first read are compared: later ones grow apart as any two
runs that round differently do, and say more of chaos than of a format.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.admission import open_stream
from qvg_engine.block_manager.format import PageFormat, get_format
from qvg_engine.cache import cache_layout
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.chunk_frames import Video, first_chunks, with_room
from qvg_engine.quality.comparison import with_centroids
from qvg_engine.quality.figures import FramePsnr
from qvg_engine.request import VideoRequest

NUM_CHUNKS = 3
"""Chunks that are compared: the first that read the cache, which are the second to the fourth."""


class FrameComparison:
    """Generates the same videos with one format after the other.

    Args:
        family: with prompt encoder and VAE.
        config: of the engine; format, memory and number of streams are set here.
        prompts: video i has the seed `seed` + i.
        num_frames: the length that streams ask for, in pixel frames; it says how large their
            codebooks are. Only the first chunks are generated.
    """

    def __init__(
        self,
        family: ModelFamily,
        config: EngineConfig,
        *,
        prompts: Sequence[str],
        num_frames: int,
        seed: int,
    ) -> None:
        self._family = family
        self._config = config
        self._prompts = prompts
        self._num_frames = num_frames
        self._seed = seed
        self._exact = self._generate(self._engine_config(get_format("bf16")))

    def measure(self, page_format: PageFormat, *, centroids: int | None = None) -> FramePsnr:
        """PSNR of a format with codebooks of so many centroids; None: as many as streams get."""
        if centroids is not None:
            page_format = with_centroids(page_format, centroids)
        config = self._engine_config(page_format, fill=centroids is not None)
        rows = self._codebook_rows(config)
        codec = page_format.codec
        stages = codec.stages if codec is not None else 0
        widths = codec is not None and codec.channel_widths
        made = self._generate(config)
        videos = tuple(
            tuple(map(psnr, video, exact)) for video, exact in zip(made, self._exact, strict=True)
        )
        return FramePsnr(
            name=page_format.name,
            own_budget=centroids is None,
            centroids=(rows - widths) // stages if stages else 0,
            codebook_rows=rows,
            chunks=tuple(_mean(chunk) for chunk in zip(*videos, strict=True)),
            videos=tuple(tuple(map(_finite, video)) for video in videos),
        )

    def _engine_config(self, page_format: PageFormat, *, fill: bool = False) -> EngineConfig:
        """Settings with room for all videos; with `fill`, for the format's largest codebooks."""
        config = msgspec.structs.replace(
            self._config,
            kv_format=page_format,
            value_format=None,
            batch_invariant=True,
        )
        if fill and page_format.codec is not None:
            # Half a row more, so that rounding down does not lose one.
            rows = page_format.most_codebook_rows + 0.5
            row_bits = 8 * page_format.codec.centroid_bytes
            bits = row_bits * config.codebooks.max_live * rows / self._peak_tokens
            config = msgspec.structs.replace(config, codebook_overhead=bits)
        return with_room(
            config, self._family, num_streams=len(self._prompts), num_frames=self._num_frames
        )

    @property
    def _peak_tokens(self) -> int:
        """Tokens that a stream of the asked length holds at its peak."""
        stream, _ = open_stream(self._request(0), family=self._family, page_size=1)
        return stream.program.peak_tokens

    def _codebook_rows(self, config: EngineConfig) -> int:
        budget = cache_layout(self._family, config).budget
        return budget.rows_per_slot(self._peak_tokens) if budget is not None else 0

    def _generate(self, config: EngineConfig) -> list[Video]:
        engine = VideoEngine(config, family=self._family)
        requests = [self._request(index) for index in range(len(self._prompts))]
        return first_chunks(engine, requests, first=1, count=NUM_CHUNKS)

    def _request(self, index: int) -> VideoRequest:
        return VideoRequest(
            request_id=str(index),
            prompt=self._prompts[index],
            num_frames=self._num_frames,
            seed=self._seed + index,
        )


def psnr(frames: NDArray[np.uint8], exact: NDArray[np.uint8]) -> float:
    """PSNR in dB of uint8 frames, their squared error taken over all of them; inf for equal."""
    error = float(np.square(frames.astype(np.float64) - exact).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _mean(values: Sequence[float]) -> float | None:
    return _finite(float(np.mean(values)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
