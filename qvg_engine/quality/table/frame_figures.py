"""How near the frames of two runs are: PSNR and SSIM, chunk by chunk."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.quality.chunk_frames import Video
from qvg_engine.quality.psnr import psnr
from qvg_engine.quality.ssim import ssim

NUM_SAMPLES = 3
EQUAL_DB = 100.0
"""What equal frames count as, so that means exist: a chunk of 12 frames of 64 by 64 pixels in which
one number differs by 1 has 99.8 dB."""


class VideoFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One video against another: `psnr` in dB and `ssim` of each chunk; `whole_psnr` of all."""

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    whole_psnr: float


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The videos of one run, prompt by prompt.

    `samples` are the last frames of the first `NUM_SAMPLES` videos, uint8 of `sample_shape`
    [H, W, 3] each.
    """

    videos: tuple[VideoFigures, ...]
    samples: tuple[bytes, ...]
    sample_shape: tuple[int, int, int]


def compare_runs(made: Sequence[Video], exact: Sequence[Video]) -> RunFigures:
    """The figures of a run against another one of the same prompts and seeds."""
    height, width, colours = made[0][-1][-1].shape
    return RunFigures(
        videos=tuple(compare_videos(*pair) for pair in zip(made, exact, strict=True)),
        samples=tuple(frame.tobytes() for frame in last_frames(made)),
        sample_shape=(height, width, colours),
    )


def last_frames(videos: Sequence[Video]) -> list[NDArray[np.uint8]]:
    """The last frames [H, W, 3] of the first `NUM_SAMPLES` videos."""
    return [video[-1][-1] for video in videos[:NUM_SAMPLES]]


def compare_videos(made: Video, exact: Video) -> VideoFigures:
    """The figures of chunks [T, H, W, 3] against others of the same shapes."""
    assert len(made) == len(exact), (len(made), len(exact))
    return VideoFigures(
        psnr=tuple(_capped(psnr(ours, theirs)) for ours, theirs in zip(made, exact, strict=True)),
        ssim=tuple(ssim(ours, theirs) for ours, theirs in zip(made, exact, strict=True)),
        whole_psnr=_capped(psnr(np.concatenate(made), np.concatenate(exact))),
    )


def _capped(db: float) -> float:
    return min(db, EQUAL_DB) if math.isfinite(db) else EQUAL_DB
