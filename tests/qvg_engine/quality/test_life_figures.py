import pytest

from qvg_engine.block_manager.format import get_format
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.codebook_life import Life
from qvg_engine.quality.life_figures import LifeFigures, measure_life, passes_ms
from qvg_engine.quality.teacher_forced import TeacherForced
from qvg_engine.request import VideoRequest
from tests.qvg_engine.quality.conftest import CONFIG, PROMPT


@pytest.fixture(scope="module")
def forced(capture: Capture) -> dict[int, TeacherForced]:
    return {layer: TeacherForced(capture, layer, (3, 4)) for layer in capture.layers}


def measured(
    capture: Capture, forced: dict[int, TeacherForced], life: Life, overhead: float
) -> LifeFigures:
    return measure_life(
        "life", capture, forced, get_format("q2"), life, overhead=overhead, kept_chunks=3
    )


def test_more_bits_lose_less(capture: Capture, forced: dict[int, TeacherForced]) -> None:
    few, many = (measured(capture, forced, Life(), overhead) for overhead in (0.2, 1.5))
    assert few.centroids < many.centroids
    assert few.bits == many.bits == 2.1875
    assert 0.15 < few.codebook_bits <= 0.2 < many.codebook_bits <= 1.5
    assert few.total_bits == few.bits + few.codebook_bits
    for field in ("key_error", "value_error", "attention_error"):
        assert 0 < getattr(many, field) < getattr(few, field) < 1, field


def test_costs_are_of_all_books(capture: Capture, forced: dict[int, TeacherForced]) -> None:
    found = measured(capture, forced, Life(serves=1, warm=False), 0.5)
    assert found.live == 3
    assert found.fits == 5
    assert found.fit_ms > 0 < found.encode_ms


def test_a_budget_without_a_centroid_says_so(
    capture: Capture, forced: dict[int, TeacherForced]
) -> None:
    found = measured(capture, forced, Life(serves=1), 0.05)
    assert (found.live, found.centroids, found.fits) == (3, 0, 0)
    assert found.codebook_bits > 0.05 / 2


def test_passes_take_time(pocket: ModelFamily) -> None:
    request = VideoRequest(request_id="a", prompt=PROMPT, num_frames=36, output="latents")
    assert 1 < passes_ms(pocket, CONFIG, request) < 1e6
