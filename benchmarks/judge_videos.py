"""Judges finished videos of the embedded model, from their pixels alone.

    python benchmarks/judge_videos.py videos/demo.json

reads the MP4s that a run's JSON lists and prints in how many sampled frames shape, colours and
direction are as prompted.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from qvg_engine.models.pocket.clips import SIZE, all_scenes
from qvg_engine.models.pocket.judge import ATTRIBUTES, is_alive, judge_video
from qvg_engine.video.reader import probe_video, read_video

STRETCH = 96
"""Frames over which a video is asked whether it is alive."""


def main(
    report: Annotated[Path, typer.Argument(help="JSON of `qvg-engine generate --json`.")],
    every: Annotated[int, typer.Option(min=1, help="Judge every so many frames.")] = 16,
) -> None:
    """Print a line a video, and one for all."""
    scenes = {scene.prompt: scene for scene in all_scenes()}
    tables = []
    for entry in json.loads(report.read_text())["videos"]:
        path = Path(entry["path"])
        frames = read_video(path, shrink=probe_video(path).height // SIZE)
        scene = scenes[entry["prompt"]]
        verdicts = judge_video(frames, every=every)
        table = np.asarray([list(verdict.matches(scene).values()) for verdict in verdicts])
        starts = range(0, len(frames) - STRETCH + 1, STRETCH)
        alive = float(np.mean([is_alive(frames[start : start + STRETCH]) for start in starts]))
        tables.append(table)
        typer.echo(f"{scene.prompt}: {shares(table)}, alive {alive:.0%}")
    typer.echo(f"all {sum(map(len, tables))} frames: {shares(np.concatenate(tables))}")


def shares(table: NDArray[np.bool_]) -> str:
    """The share of frames in which each attribute, and all of them, are as prompted."""
    parts = [f"{name} {table[:, i].mean():.0%}" for i, name in enumerate(ATTRIBUTES)]
    return ", ".join([*parts, f"all {table.all(axis=1).mean():.0%}"])


if __name__ == "__main__":
    typer.run(main)
