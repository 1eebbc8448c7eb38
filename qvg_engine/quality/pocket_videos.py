"""Judging videos of the embedded model from their pixels, and comparing formats of pages by that.

Videos of the same prompts and seeds are made with pages of several formats. What is found in them
is compared prompt by prompt, since prompts differ more from each other than formats do.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qvg_engine.models.pocket.clips import Scene
from qvg_engine.models.pocket.judge import ATTRIBUTES, is_alive, judge_video
from qvg_engine.quality.files import write_whole

Frames = NDArray[np.uint8]
Generate = Callable[[Sequence[str], int, int], list[Frames]]
"""(prompts, frames, window in latent frames) -> videos [T, H, W, 3]."""

STRETCH = 96
"""Pixel frames over which a video is asked whether it is alive."""
RESAMPLES = 10_000
KEYS = (*ATTRIBUTES, "all", "stretches", "last_stretches")
"""The shares that formats are compared by, see `adherence` and `life`."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How videos are made and judged; those of another sampling are not comparable.

    `together` videos are made at a time, `weights` is the checksum of the model's.
    """

    kv_format: str
    num_frames: int
    window_frames: int
    every: int
    together: int
    dtype: Literal["float32", "bfloat16"]
    weights: str


class JudgedVideo(msgspec.Struct, frozen=True):
    """What was found in one video: `shares` as in `adherence` and `life`."""

    prompt: str
    shares: dict[str, float]


class JudgedVideos(msgspec.Struct, frozen=True):
    """The file of one format."""

    sampling: Sampling
    videos: list[JudgedVideo]


def adherence(videos: Sequence[Frames], scenes: Sequence[Scene], *, every: int) -> dict[str, float]:
    """Share of sampled frames in which each attribute, and all of them, are as prompted."""
    matches = [
        list(verdict.matches(scene).values())
        for video, scene in zip(videos, scenes, strict=True)
        for verdict in judge_video(video, every=every)
    ]
    table = np.asarray(matches, dtype=float)
    shares = {name: float(table[:, i].mean()) for i, name in enumerate(ATTRIBUTES)}
    return shares | {"all": float(table.all(axis=1).mean()), "sampled_frames": float(len(table))}


def life(videos: Sequence[Frames], *, stretch: int = STRETCH) -> dict[str, float]:
    """Share of stretches that are alive, and of videos whose last stretch is."""
    alive = [
        [is_alive(video[t : t + stretch]) for t in range(0, len(video) - stretch + 1, stretch)]
        for video in videos
    ]
    return {
        "stretches": float(np.mean([value for video in alive for value in video])),
        "last_stretches": float(np.mean([video[-1] for video in alive])),
    }


def judged_videos(
    generate: Generate,
    scenes: Sequence[Scene],
    sampling: Sampling,
    path: Path,
    *,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[JudgedVideo]:
    """Make and judge a video of each scene, `sampling.together` at a time.

    What is done is kept in `path` after every batch, and taken from there if it was made by the
    same sampling of the same scenes. `on_batch` is told how many videos are done.
    """
    done = _read_judged(path, sampling, scenes)
    size = sampling.together
    if len(done) < len(scenes):
        # A last batch that was smaller is made again with the others that now belong to it.
        done = done[: len(done) // size * size]
    for start in range(len(done), len(scenes), size):
        batch = scenes[start : start + size]
        prompts = [scene.prompt for scene in batch]
        videos = generate(prompts, sampling.num_frames, sampling.window_frames)
        for video, scene in zip(videos, batch, strict=True):
            shares = adherence([video], [scene], every=sampling.every) | life([video])
            done.append(JudgedVideo(scene.prompt, shares))
        kept = msgspec.json.encode(JudgedVideos(sampling, done))
        write_whole(path, msgspec.json.format(kept, indent=2) + b"\n")
        on_batch(len(done))
    return done[: len(scenes)]


def _read_judged(path: Path, sampling: Sampling, scenes: Sequence[Scene]) -> list[JudgedVideo]:
    if not path.exists():
        return []
    kept = msgspec.json.decode(path.read_bytes(), type=JudgedVideos)
    prompts = [video.prompt for video in kept.videos]
    same = all(a == b.prompt for a, b in zip(prompts, scenes, strict=False))
    return kept.videos if kept.sampling == sampling and same else []


def paired_difference(shares: ArrayLike, baseline: ArrayLike, *, seed: int = 0) -> dict[str, float]:
    """Mean of `shares` minus that of `baseline`, paired, and its 95 % interval.

    Both hold a number for each prompt, in the same order. The interval is that of the mean over
    prompts that are drawn from those there are, with replacement, `RESAMPLES` times; where no
    prompt differs it has no width.
    """
    differences = np.asarray(shares, dtype=float) - np.asarray(baseline, dtype=float)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return {"difference": float(differences.mean()), "low": float(low), "high": float(high)}


def compare(by_format: Mapping[str, Sequence[JudgedVideo]], sampling: Sampling) -> dict[str, Any]:
    """Mean shares of each format, and how far the later ones are from the first.

    Every format has the same prompts in the same order.
    """
    first, *others = by_format
    prompts = [video.prompt for video in by_format[first]]
    assert all([video.prompt for video in by_format[name]] == prompts for name in others)
    columns = {
        name: {key: [video.shares[key] for video in videos] for key in KEYS}
        for name, videos in by_format.items()
    }
    return {
        "num_prompts": len(prompts),
        "num_frames": sampling.num_frames,
        "dtype": sampling.dtype,
        "window_frames": sampling.window_frames,
        "every": sampling.every,
        "baseline": first,
        "formats": {
            name: {key: float(np.mean(column[key])) for key in KEYS}
            for name, column in columns.items()
        },
        "differences": {
            name: {key: paired_difference(columns[name][key], columns[first][key]) for key in KEYS}
            for name in others
        },
    }


def comparison_text(report: dict[str, Any]) -> str:
    """What `compare` found, as a table in Markdown."""
    names = (*ATTRIBUTES, "all four", "alive", "alive at the end")
    lines = [
        "# The embedded model's videos by page format",
        "",
        f"{report['num_prompts']} prompts, {report['num_frames']} frames each ({report['dtype']}), "
        f"window of {report['window_frames']} latent frames, every {report['every']}th frame "
        "judged. Differences are in percentage points, paired by prompt and seed, with their 95 % "
        f"interval ({RESAMPLES:,} resamples of the prompts).",
        "",
        "| | " + " | ".join(names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for name, shares in report["formats"].items():
        lines.append(f"| `{name}` | " + " | ".join(f"{shares[key]:.1%}" for key in KEYS) + " |")
    for name, differences in report["differences"].items():
        cells = [
            "{difference:+.1f} ({low:+.1f} to {high:+.1f})".format(
                **{part: 100 * value for part, value in differences[key].items()}
            )
            for key in KEYS
        ]
        lines.append(f"| `{name}` - `{report['baseline']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
