"""The judge on drawn clips, where the truth is known."""

import numpy as np
import pytest

from qvg_engine.models.pocket.clips import Scene, all_scenes, draw_clip
from qvg_engine.models.pocket.judge import ATTRIBUTES, is_alive, judge_video


def test_real_clips_are_recognised_and_wrong_prompts_are_not() -> None:
    rng = np.random.default_rng(0)
    scenes = all_scenes()
    right, wrong, total = 0, 0, 0
    for seed in range(40):
        clip = draw_clip(5_000 + seed, num_frames=40)
        other = scenes[int(rng.integers(len(scenes)))]
        for verdict in judge_video(clip.frames, every=10):
            total += 1
            right += all(verdict.matches(clip.scene).values())
            wrong += other != clip.scene and all(verdict.matches(other).values())
    assert right / total >= 0.98
    assert wrong / total <= 0.02


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_attribute_counts(attribute: str) -> None:
    scene = Scene("triangle", "yellow", "blue", "down")
    others = {"shape": "circle", "color": "red", "background": "green", "direction": "up"}
    fields = {name: getattr(scene, name) for name in ATTRIBUTES} | {attribute: others[attribute]}
    clip = draw_clip(1, num_frames=30, scene=scene)
    for verdict in judge_video(clip.frames):
        matches = verdict.matches(Scene(**fields))
        assert matches == {name: name != attribute for name in ATTRIBUTES}


def test_a_still_camera_has_no_direction() -> None:
    frame = draw_clip(2, num_frames=1).frames
    verdicts = judge_video(np.repeat(frame, 20, axis=0))
    assert all(verdict.direction is None for verdict in verdicts)


def test_nothing_is_found_in_grey_and_noise() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((24, 64, 64, 3), 90, dtype=np.uint8)
    noise = rng.integers(256, size=grey.shape, dtype=np.uint8)
    for frames in (grey, noise):
        assert not is_alive(frames)
        assert all(verdict.shape is None for verdict in judge_video(frames))


def test_real_clips_are_alive_and_still_ones_are_not() -> None:
    for seed in range(8):
        frames = draw_clip(seed, num_frames=40).frames
        assert is_alive(frames)
        assert not is_alive(np.repeat(frames[:1], 40, axis=0))
