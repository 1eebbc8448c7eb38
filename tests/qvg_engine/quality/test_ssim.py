"""Against figures of scikit-image 0.26.0:

structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
data_range=255), the mean of its map without a border of 5 pixels.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from qvg_engine.quality.ssim import ssim

KNOWN = (0.9957080257171473, 0.9191737250517638, 0.6717139229027617)


def pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    y, x = np.mgrid[0:24, 0:20]
    one = np.stack([(7 * x + 3 * y) % 256, (x * y) % 256, (5 * x - 2 * y) % 256], -1)
    other = np.stack([(7 * x + 3 * y + 9) % 256, (x * y + x) % 256, (5 * x - 2 * y) % 256 // 2], -1)
    return one.astype(np.uint8)[None], other.astype(np.uint8)[None]


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_it_is_what_scikit_image_finds(colour: int) -> None:
    one, other = (np.repeat(frame[..., [colour]], 3, axis=-1) for frame in pair())
    assert ssim(one, other) == pytest.approx(KNOWN[colour], abs=1e-12)


def test_it_is_the_mean_over_colours_and_frames() -> None:
    one, other = pair()
    assert ssim(one, other) == pytest.approx(np.mean(KNOWN), abs=1e-12)
    both = ssim(np.concatenate([one, one]), np.concatenate([other, one]))
    assert both == pytest.approx((np.mean(KNOWN) + 1) / 2, abs=1e-12)


def test_equal_frames_are_alike() -> None:
    one, _ = pair()
    assert ssim(one, one) == pytest.approx(1, abs=1e-12)
