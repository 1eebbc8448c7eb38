import math

import numpy as np
import pytest

from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.comparison import quality_format
from qvg_engine.quality.psnr import FrameComparison, psnr
from tests.qvg_engine.quality.conftest import CONFIG, PROMPT


@pytest.fixture(scope="module")
def comparison(pocket: ModelFamily) -> FrameComparison:
    return FrameComparison(pocket, CONFIG, prompts=[PROMPT], num_frames=72, seed=0)


def test_psnr_of_known_frames() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(frames, frames) == math.inf
    assert psnr(frames, frames + 255) == pytest.approx(0, abs=1e-9)
    assert psnr(frames, frames + 51) == pytest.approx(20 * math.log10(5))


def test_bf16_is_what_the_others_are_compared_with(comparison: FrameComparison) -> None:
    found = comparison.measure(quality_format("bf16"))
    # A matrix product may add in another order where its memory lies otherwise: a pixel in a few
    # thousand is then rounded to the next of its 256 values.
    assert all(chunk is None or chunk > 80 for chunk in found.chunks), found.chunks
    assert (found.centroids, found.codebook_rows) == (0, 0)


def test_formats_are_told_apart(comparison: FrameComparison) -> None:
    fine, coarse = (comparison.measure(quality_format(name)) for name in ("q4", "rtn2"))
    assert fine.chunks[0] is not None
    assert coarse.chunks[0] is not None
    assert fine.chunks[0] > coarse.chunks[0] + 6
    assert 10 < coarse.chunks[0] < 60
    assert coarse.codebook_rows == 1


def test_codebooks_are_as_large_as_asked(comparison: FrameComparison) -> None:
    own = comparison.measure(quality_format("q2"))
    more = comparison.measure(quality_format("q2"), centroids=40)
    assert (more.own_budget, more.centroids, more.codebook_rows) == (False, 40, 41)
    assert own.own_budget
    assert 0 < own.centroids < 40
    assert own.codebook_rows == own.centroids + 1
