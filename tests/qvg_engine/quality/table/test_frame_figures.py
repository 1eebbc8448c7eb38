import numpy as np
import pytest

from qvg_engine.quality.chunk_frames import Video
from qvg_engine.quality.table.frame_figures import (
    EQUAL_DB,
    NUM_SAMPLES,
    compare_runs,
    compare_videos,
)


def grey(*values: int) -> Video:
    """Chunks of two frames of 16 by 16 pixels."""
    return [np.full((2, 16, 16, 3), value, np.uint8) for value in values]


def test_known_differences() -> None:
    found = compare_videos(grey(100, 51, 255), grey(100, 0, 0))
    assert found.psnr == pytest.approx((EQUAL_DB, 20 * np.log10(5), 0), abs=1e-9)
    assert found.ssim[0] == pytest.approx(1)
    assert found.ssim[2] < 0.001
    error = (0 + 51**2 + 255**2) / 3
    assert found.whole_psnr == pytest.approx(10 * np.log10(255**2 / error))


def test_a_run_keeps_the_last_frames_of_its_first_videos() -> None:
    made = [grey(1, video) for video in range(NUM_SAMPLES + 1)]
    found = compare_runs(made, made)
    assert len(found.videos) == NUM_SAMPLES + 1
    assert found.sample_shape == (16, 16, 3)
    assert [frame[0] for frame in found.samples] == list(range(NUM_SAMPLES))
    assert len(found.samples[0]) == 16 * 16 * 3
