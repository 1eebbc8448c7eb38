"""Which frames are remembered, against a count point by point."""

import numpy as np
import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.models.worldplay.cameras import CameraPath
from qvg_engine.models.worldplay.hunyuan_family import hunyuan_settings
from qvg_engine.models.worldplay.memory import default_points, select_memory, view_overlap
from qvg_engine.models.worldplay.settings import WorldPlaySettings
from qvg_engine.models.worldplay.wan_family import wan_settings
from tests.models.worldplay.plain import remembered, sees

POINTS = default_points()[:1200]
POSES = ["right-30,left-33", "w-31,s-32", "right-20,up-4,d-10,down-4,left-25", "a-63"]


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("settings", [hunyuan_settings(), wan_settings()], ids=["8b", "5b"])
def test_the_published_memories(pose: str, settings: WorldPlaySettings) -> None:
    world = CameraPath.from_pose_string(pose).world_to_camera
    for first in (0, 4, 16, 20, 24, 36, 60):
        chosen = select_memory(world, first, settings=settings, points=POINTS)
        expected = remembered(world.double().numpy(), first, settings, POINTS.double().numpy())
        assert list(chosen) == expected
        assert len(chosen) == min(first, settings.memory_frames or first)


def test_what_was_seen_from_here_is_remembered() -> None:
    """A walk, a turn by 90 degrees and a turn back: frames from before the turn are chosen."""
    world = CameraPath.from_pose_string("right-30,left-33").world_to_camera
    chosen = select_memory(world, 56, settings=hunyuan_settings(), points=default_points())
    # The chunk turns where frames 1 to 4 did; frames 0 to 3 are kept anyway.
    assert chosen == (*range(4), *range(4, 8), *range(44, 56))


def test_without_a_window_all_is_remembered() -> None:
    world = CameraPath.from_pose_string("w-99").world_to_camera
    settings = WorldPlaySettings(latent_shape=(4, 2, 2), window_frames=None)
    assert select_memory(world, 96, settings=settings, points=POINTS) == tuple(range(96))


def test_equal_views_take_the_earlier_group() -> None:
    world = CameraPath.standing_still(64).world_to_camera
    chosen = select_memory(world, 60, settings=hunyuan_settings(), points=POINTS)
    assert chosen == (*range(8), *range(48, 60))


def test_overlap_of_views() -> None:
    path = CameraPath.from_pose_string("right-30,w-20,left-5,up-7")
    world = path.world_to_camera
    shares = view_overlap(world[10], world, POINTS)
    seen = [point for point in POINTS.double().numpy() if sees(point, np.eye(4))]
    for frame in (0, 5, 10, 30, 50, 62):
        relative = (world[10].double() @ torch.linalg.inv(world[frame].double())).numpy()
        expected = sum(sees(point, relative) for point in seen) / len(seen)
        assert abs(float(shares[frame]) - expected) <= 1.5 / len(seen)
    assert float(shares[10]) == 1
    assert view_overlap(world[0], world, torch.tensor([[0.0, 0.0, -1.0]])).sum() == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"window_frames": 16, "sink_frames": 4}, "window_frames is 16: give at least 20"),
        ({"window_frames": 23}, "memory_frames is 19: give a multiple"),
        ({"recent_frames": 0}, "recent_frames is 0"),
        ({"sink_frames": 2}, "sink_frames is 2: give a multiple"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
        ({"positions": "window"}, "positions is 'window'"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WorldPlaySettings(latent_shape=(4, 2, 2), **given)  # type: ignore[arg-type]
