"""The command line with the real engine and the embedded model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qvg_engine.video.reader import probe_video, read_video

CommandLine = Callable[..., Any]

RED = "a red circle over a green background, camera moving left"
BLUE = "a blue square over a white background, camera moving up"
SMALL = ("--kv-memory", "64MiB", "--device", "cpu")


def test_two_videos_are_made_together(cli: CommandLine, tmp_path: Path) -> None:
    result = cli("generate", RED, BLUE, "--num-frames", "30", "--json", "run.json", *SMALL)
    assert (result.code, result.err) == (0, "")
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["mean_streams_per_step"] == 2
    assert report["kv_bytes_peak"] > 0
    assert report["kv_ratio"] >= report["total_ratio"] > 0
    for video in report["videos"]:
        info = probe_video(video["path"])
        assert (info.num_frames, info.height, info.width) == (30, 256, 256)


def test_a_video_does_not_depend_on_its_neighbours(cli: CommandLine, tmp_path: Path) -> None:
    options = ("--num-frames", "24", "--batch-invariant", *SMALL)
    assert cli("generate", RED, BLUE, "--seed", "6", "--output-dir", "both", *options).code == 0
    assert cli("generate", BLUE, "--seed", "7", "--output-dir", "alone", *options).code == 0
    (alone,) = (tmp_path / "alone").iterdir()
    together = tmp_path / "both" / alone.name
    assert np.array_equal(read_video(alone), read_video(together))


def test_unknown_words_are_named(cli: CommandLine) -> None:
    result = cli("generate", "a red zebra over a green background", "--num-frames", "12", *SMALL)
    assert result.code == 0
    assert "zebra" in result.err
    assert result.err.count("\n") == 1


def test_a_video_that_can_never_fit_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    result = cli("generate", RED, "--num-frames", "960", "--kv-memory", "1MiB")
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_that_it_does_not_fit_and_what_would(cli: CommandLine) -> None:
    refused = cli("doctor", "--num-frames", "960", "--kv-memory", "1MiB")
    assert refused.code == 2
    _, _, advice = refused.out.partition("give --kv-memory ")
    enough = advice.split()[0]
    assert cli("doctor", "--num-frames", "960", "--kv-memory", enough).code == 0
