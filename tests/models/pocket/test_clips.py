"""Drawn clips: reproducible, in view, and on a torus."""

import numpy as np
import pytest

from qvg_engine.models.pocket.clips import (
    FRAMES_PER_LATENT,
    GROUND_LENGTH,
    RETURN_FRAMES,
    SIZE,
    STUMBLE_LATENTS,
    Scene,
    all_scenes,
    draw_clip,
    scene_of,
    shape_track,
    stumbling_pace,
)


def test_a_seed_gives_one_clip() -> None:
    first, second = draw_clip(3, num_frames=6), draw_clip(3, num_frames=6)
    assert np.array_equal(first.frames, second.frames)
    assert first.scene == second.scene == scene_of(3)
    assert not np.array_equal(first.frames, draw_clip(4, num_frames=6).frames)


def test_scenes_are_all_different_pairs_of_colors() -> None:
    scenes = all_scenes()
    assert len(set(scenes)) == len(scenes) == 3 * 6 * 5 * 4
    assert all(scene.color != scene.background for scene in scenes)


def test_a_given_scene_is_drawn() -> None:
    scene = Scene("square", "white", "purple", "up")
    assert draw_clip(0, num_frames=1, scene=scene).scene == scene
    assert scene.prompt == "a white square over a purple background, camera moving up"


@pytest.mark.parametrize("direction", ["left", "right", "up", "down"])
def test_ground_comes_back_after_one_lap(direction: str) -> None:
    scene = Scene("circle", "red", "blue", direction)
    clip = draw_clip(7, num_frames=400, scene=scene)
    lap = GROUND_LENGTH / clip.speed
    assert lap == pytest.approx(round(lap))
    track = shape_track(7, num_frames=400)
    axis = np.arange(SIZE)
    ground = np.ones((SIZE, SIZE), dtype=bool)
    for x, y, radius in track[[0, round(lap)]]:
        near = (np.abs(axis - x)[None, :] < radius + 2) & (np.abs(axis - y)[:, None] < radius + 2)
        ground &= ~near
    assert ground.mean() > 0.5
    first, again = clip.frames[0].astype(int), clip.frames[round(lap)].astype(int)
    assert np.abs(first - again)[ground].max() <= 1
    step = clip.camera_offset[1] - clip.camera_offset[0]
    assert step == pytest.approx(clip.speed if direction in ("right", "down") else -clip.speed)


def test_speeds_bring_ground_back_after_whole_latent_frames() -> None:
    away = {
        (GROUND_LENGTH - SIZE) / (FRAMES_PER_LATENT * draw_clip(seed, num_frames=1).speed)
        for seed in range(60)
    }
    assert {round(frames, 6) for frames in away} == set(RETURN_FRAMES)


def test_the_shape_stays_wholly_in_view() -> None:
    for seed in range(12):
        clip = draw_clip(seed, num_frames=300, scene=Scene("square", "red", "green", "left"))
        red = clip.frames[..., 0].astype(int) - clip.frames[..., 1] > 100
        edge = np.ones((SIZE, SIZE), dtype=bool)
        edge[1:-1, 1:-1] = False
        assert not red[:, edge].any()
        assert red.sum(axis=(1, 2)).min() > 200


def test_a_stumbling_camera_is_slower_than_any_should_be_until_it_finds_a_pace() -> None:
    real = [(GROUND_LENGTH - SIZE) / (FRAMES_PER_LATENT * frames) for frames in RETURN_FRAMES]
    slow, shares = 0, []
    for seed in range(20):
        clip = draw_clip(seed, num_frames=240, stumbling=True)
        straight = draw_clip(seed, num_frames=1)
        assert (clip.scene, clip.speed) == (straight.scene, straight.speed)
        assert np.array_equal(clip.frames[0], straight.frames[0])
        assert not clip.on_pace[0]
        assert np.array_equal(clip.on_pace, stumbling_pace(seed, num_frames=240))
        pieces = clip.on_pace.reshape(-1, STUMBLE_LATENTS * FRAMES_PER_LATENT)
        assert (pieces == pieces[:, :1]).all()
        forward = 1.0 if clip.scene.direction in ("right", "down") else -1.0
        speeds = forward * np.diff(clip.camera_offset)
        kept = speeds[clip.on_pace[1:]]
        assert np.isclose(kept[:, None], real, atol=1e-9).any(axis=1).all()
        stumbles = speeds[~clip.on_pace[1:]]
        assert (stumbles >= 0).all()
        assert (stumbles < clip.speed).mean() > 0.5
        slow += int((stumbles < min(real)).sum())
        shares.append(clip.on_pace.mean())
    assert slow > 1000
    assert 0.2 < np.mean(shares) < 0.6


def test_a_camera_keeps_its_pace_unless_it_is_to_stumble() -> None:
    assert draw_clip(3, num_frames=60).on_pace.all()
