"""Revisited ground is found in real clips, and when it was out of view."""

import numpy as np
import pytest

from qvg_engine.models.pocket.clips import (
    DIRECTIONS,
    GROUND_LENGTH,
    SIZE,
    Clip,
    Scene,
    draw_clip,
)
from qvg_engine.models.pocket.memory import revisits

_NEAR = 12
"""Pixel frames between two looks at the camera: when something happens is known to one of these."""


@pytest.fixture(scope="module", params=DIRECTIONS)
def clip(request: pytest.FixtureRequest) -> Clip:
    scene = Scene("circle", "red", "green", request.param)
    # The first seeds whose camera is among the fast ones, so that a lap is short.
    clips = (draw_clip(seed, num_frames=240, scene=scene) for seed in range(40))
    return next(clip for clip in clips if clip.speed > 0.9)


def test_ground_comes_back_as_it_was_after_a_lap(clip: Clip) -> None:
    lap = GROUND_LENGTH / clip.speed
    looks = revisits(clip.frames, clip.scene.direction)
    assert looks
    for look in looks:
        assert look.again_frame - look.first_frame == pytest.approx(lap, abs=_NEAR)
        assert look.db > 30 > look.other_db + 5


def test_each_column_is_away_for_as_long_as_the_view_is_from_it(clip: Clip) -> None:
    """A column leaves when the view has passed it, and is away for the ground that is not seen."""
    for look in revisits(clip.frames, clip.scene.direction):
        assert len(look.away) == 1 + SIZE // 8
        for place, (seen, back) in enumerate(look.away):
            left = look.first_frame + 8 * place / clip.speed
            assert seen == pytest.approx(left, abs=_NEAR)
            away = (GROUND_LENGTH - SIZE) / clip.speed
            assert back - seen == pytest.approx(away, abs=_NEAR)
            assert look.first_frame <= seen < back <= look.again_frame + 1


def test_without_a_second_lap_there_is_nothing_to_see(clip: Clip) -> None:
    lap = int(GROUND_LENGTH / clip.speed)
    assert revisits(clip.frames[: lap - _NEAR], clip.scene.direction) == []
    still = np.repeat(clip.frames[:1], 60, axis=0)
    assert revisits(still, clip.scene.direction) == []
