"""Judged videos are kept, and formats are compared prompt by prompt."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from qvg_engine.models.pocket.clips import Scene, all_scenes, draw_clip
from qvg_engine.quality.pocket_videos import (
    KEYS,
    Frames,
    JudgedVideo,
    Sampling,
    adherence,
    compare,
    comparison_text,
    judged_videos,
    life,
    paired_difference,
)

SAMPLING = Sampling(
    kv_format="q2",
    num_frames=96,
    window_frames=48,
    every=48,
    together=2,
    dtype="float32",
    weights="a",
)


class Clips:
    """Real clips in the place of generated videos; `stop_after` batches it fails."""

    def __init__(self, scenes: Sequence[Scene], *, stop_after: int = 99) -> None:
        self._by_prompt = {
            scene.prompt: draw_clip(number, num_frames=96, scene=scene).frames
            for number, scene in enumerate(scenes)
        }
        self._stop_after = stop_after
        self.asked: list[list[str]] = []

    def __call__(self, prompts: Sequence[str], num_frames: int, window: int) -> list[Frames]:
        if len(self.asked) == self._stop_after:
            raise KeyboardInterrupt
        self.asked.append(list(prompts))
        return [self._by_prompt[prompt][:num_frames] for prompt in prompts]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(all_scenes()[::29][:5])


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, scenes: list[Scene]) -> None:
    path = tmp_path / "q2.json"
    stopped = Clips(scenes, stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        judged_videos(stopped, scenes, SAMPLING, path)
    going_on, told = Clips(scenes), list[int]()
    videos = judged_videos(going_on, scenes, SAMPLING, path, on_batch=told.append)
    prompts = [scene.prompt for scene in scenes]
    assert (stopped.asked, going_on.asked) == ([prompts[:2]], [prompts[2:4], prompts[4:]])
    assert told == [4, 5]
    assert videos == judged_videos(Clips(scenes), scenes, SAMPLING, tmp_path / "other.json")
    assert [video.prompt for video in videos] == prompts
    assert all(video.shares["all"] == 1 for video in videos), "real clips are as prompted"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["other.json", "q2.json"]


def test_what_was_made_otherwise_is_made_again(tmp_path: Path, scenes: list[Scene]) -> None:
    path = tmp_path / "q2.json"
    judged_videos(Clips(scenes), scenes[:3], SAMPLING, path)
    for sampling, chosen, expected in (
        (SAMPLING, scenes[:3], 0),
        (SAMPLING, scenes[:2], 0),
        (SAMPLING, scenes[:4], 1),
        (SAMPLING, scenes[1:4], 2),
        (msgspec.structs.replace(SAMPLING, weights="b"), scenes[1:4], 2),
    ):
        again = Clips(scenes)
        assert len(judged_videos(again, chosen, sampling, path)) == len(chosen)
        assert len(again.asked) == expected


def test_shares_of_real_clips(scenes: list[Scene]) -> None:
    videos = [draw_clip(7, num_frames=96, scene=scene).frames for scene in scenes]
    found = adherence(videos, scenes[1:] + scenes[:1], every=24)
    assert found["all"] < 0.5
    assert life(videos)["stretches"] == 1
    still = [np.repeat(videos[0][:1], 96, axis=0), videos[1]]
    assert life(still)["last_stretches"] == 0.5


def test_the_interval_is_paired_and_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.random(60)
    constant = paired_difference(prompts - 0.1, prompts)
    assert constant == pytest.approx({"difference": -0.1, "low": -0.1, "high": -0.1})
    covered = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0.05, 0.2, 60)
        found = paired_difference(prompts + noise, prompts)
        assert found["low"] < found["difference"] < found["high"]
        # 1.96 standard errors to either side.
        assert found["high"] - found["low"] == pytest.approx(0.101, rel=0.4)
        covered += found["low"] <= 0.05 <= found["high"]
    assert 180 <= covered <= 199


def test_the_report_names_formats_and_intervals() -> None:
    def judged(values: Sequence[float]) -> list[JudgedVideo]:
        return [JudgedVideo(str(i), dict.fromkeys(KEYS, value)) for i, value in enumerate(values)]

    report = compare({"bf16": judged([1, 0.5, 0.9]), "q2": judged([1, 0.7, 0.8])}, SAMPLING)
    assert report["formats"]["bf16"]["all"] == pytest.approx(0.8)
    found = report["differences"]["q2"]["all"]
    assert found["difference"] == pytest.approx(0.1 / 3)
    assert found["low"] < 0 < found["high"]
    text = comparison_text(report)
    assert "| `bf16` | 80.0% |" in text
    assert "| `q2` - `bf16` | +3.3 (-10.0 to +20.0) |" in text
