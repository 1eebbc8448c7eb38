import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qvg_engine.cli import make_videos
from qvg_engine.config import EngineConfig
from qvg_engine.errors import EngineDeadError, OutputError
from qvg_engine.video.reader import probe_video, read_video
from qvg_engine.video.writer import VideoWriter

CommandLine = Callable[..., Any]


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def send(number: signal.Signals, at_step: int) -> Callable[[int], None]:
    def hook(step: int) -> None:
        if step == at_step:
            os.kill(os.getpid(), number)

    return hook


def test_every_prompt_becomes_a_video(cli: CommandLine, engine: Any, tmp_path: Path) -> None:
    result = cli("generate", "a red circle", "a blue square", "--num-frames", "30", "--seed", "5")
    assert result.code == 0
    assert all_files(tmp_path) == [
        "videos/a-blue-square-seed6.mp4",
        "videos/a-red-circle-seed5.mp4",
    ]
    info = probe_video(tmp_path / "videos" / "a-red-circle-seed5.mp4")
    assert (info.num_frames, info.frames_per_second) == (30, 16)
    assert (info.height, info.width) == (256, 256)
    assert [request.seed for request in engine.requests] == [5, 6]


def test_frames_arrive_in_order(cli: CommandLine, engine: Any, tmp_path: Path) -> None:
    cli("generate", "a red circle", "--num-frames", "36", "--scale", "1")
    (path,) = (tmp_path / "videos").iterdir()
    levels = read_video(path)[:, 0, 0, 0].astype(int)
    assert np.abs(levels - np.repeat([100, 112, 124], 12)).max() <= 3


@pytest.mark.parametrize(
    ("arguments", "num_frames"),
    [
        ([], 160),
        (["--seconds", "1.5"], 24),
        (["--seconds", "0.001"], 1),
        (["--num-frames", "7"], 7),
    ],
    ids=["default", "seconds", "a moment", "frames"],
)
def test_length(cli: CommandLine, engine: Any, arguments: list[str], num_frames: int) -> None:
    assert cli("generate", "a red circle", *arguments).code == 0
    assert [request.num_frames for request in engine.requests] == [num_frames]


def test_json_has_exactly_the_published_keys(cli: CommandLine, engine: Any, tmp_path: Path) -> None:
    cli("generate", "a red circle", "a blue square", "--num-frames", "24", "--json", "out/run.json")
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(report) == {
        "videos",
        "wall_s",
        "warmup_s",
        "frames_per_s",
        "num_steps",
        "mean_streams_per_step",
        "kv_bytes_peak",
        "kv_bytes_bf16",
        "kv_ratio",
        "total_ratio",
        "codebook_bytes",
        "refinement_bytes",
        "workspace_bytes",
        "peak_rss_bytes",
        "kv_formats",
    }
    assert report["kv_formats"] == [{"keys": "q2", "values": "q2"}]
    for video, prompt, seed in zip(
        report["videos"], ["a red circle", "a blue square"], [0, 1], strict=True
    ):
        assert set(video) == {"path", "prompt", "seed", "num_frames", "first_chunk_s", "wall_s"}
        assert (video["prompt"], video["seed"], video["num_frames"]) == (prompt, seed, 24)
        assert 0 < video["first_chunk_s"] <= video["wall_s"] <= report["wall_s"]
        assert probe_video(video["path"]).num_frames == 24
    assert report["frames_per_s"] == pytest.approx(48 / report["wall_s"])
    assert (report["kv_ratio"], report["total_ratio"], report["num_steps"]) == (2.0, 1.25, 2)
    assert report["peak_rss_bytes"] > 10 * 2**20
    assert all_files(tmp_path / "out") == ["run.json"]


def test_the_table_shows_videos_and_figures(cli: CommandLine, engine: Any) -> None:
    result = cli("generate", "a red circle", "--num-frames", "24")
    assert "videos/a-red-circle-seed0.mp4" in result.out
    assert "2.00x" in result.out
    assert "\x1b" not in result.out
    assert result.err == ""


def test_an_existing_video_is_kept(cli: CommandLine, engine: Any, tmp_path: Path) -> None:
    for num_frames in ("12", "24"):
        cli("generate", "a red circle", "--num-frames", num_frames)
    folder = tmp_path / "videos"
    assert probe_video(folder / "a-red-circle-seed0.mp4").num_frames == 12
    assert probe_video(folder / "a-red-circle-seed0-2.mp4").num_frames == 24


def test_overwrite_replaces_it(cli: CommandLine, engine: Any, tmp_path: Path) -> None:
    for num_frames in ("12", "24"):
        cli("generate", "a red circle", "--num-frames", num_frames, "--overwrite")
    assert all_files(tmp_path) == ["videos/a-red-circle-seed0.mp4"]
    assert probe_video(tmp_path / "videos" / "a-red-circle-seed0.mp4").num_frames == 24


def test_unknown_words_are_named_and_no_error(cli: CommandLine, engine: Any) -> None:
    result = cli("generate", "a red zebra over quark", "--num-frames", "12")
    assert result.code == 0
    assert result.err.count("\n") == 1
    assert result.err.startswith("warning: ")
    assert "'zebra', 'quark'" in result.err


def test_a_stream_that_fails_leaves_nothing_and_the_others_finish(
    cli: CommandLine, engine: Any, tmp_path: Path
) -> None:
    result = cli(
        "generate", "a red circle", "a broken square", "--num-frames", "36", "--json", "run.json"
    )
    assert result.code == 2
    assert all_files(tmp_path) == ["run.json", "videos/a-red-circle-seed0.mp4"]
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert errors == ["error: 'a broken square' failed: NaN in its latents"]
    assert "failed" in result.out
    report = json.loads((tmp_path / "run.json").read_text())
    assert [video["prompt"] for video in report["videos"]] == ["a red circle"]


def test_a_file_that_cannot_be_written_fails_that_video_alone(
    cli: CommandLine, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = VideoWriter.write

    def fail_on_blue(self: VideoWriter, frames: NDArray[np.uint8]) -> None:
        if "blue" in self.path.name and self.num_frames:
            raise OutputError(f"cannot write {self.path}: No space left on device")
        write(self, frames)

    monkeypatch.setattr(VideoWriter, "write", fail_on_blue)
    result = cli("generate", "a blue square", "a red circle", "--num-frames", "36")
    assert result.code == 2
    assert all_files(tmp_path) == ["videos/a-red-circle-seed1.mp4"]
    assert engine.aborted == ["video-1"]
    assert "No space left" in result.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_keeps_complete_videos_and_removes_the_others(
    cli: CommandLine, engine: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    engine.max_running = 1
    engine.before_step = send(number, at_step=2)
    prompts = ("a red circle", "a blue square", "a green circle")
    result = cli("generate", *prompts, "--num-frames", "24", "--json", "run.json")
    assert result.code == code
    assert all_files(tmp_path) == ["videos/a-red-circle-seed0.mp4"]
    assert probe_video(tmp_path / "videos" / "a-red-circle-seed0.mp4").num_frames == 24
    assert result.err == "stopped: 1 of 3 videos are complete\n"


def test_a_second_ctrl_c_leaves_nothing_either(
    cli: CommandLine, engine: Any, tmp_path: Path
) -> None:
    def interrupt_twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    engine.before_step = interrupt_twice
    assert cli("generate", "a red circle", "--num-frames", "48").code == 130
    assert all_files(tmp_path) == []


def test_an_engine_that_dies_is_one_line_and_leaves_nothing(
    cli: CommandLine, engine: Any, tmp_path: Path
) -> None:
    def die(step: int) -> None:
        if step == 2:
            raise EngineDeadError("the device is gone: start again")

    engine.before_step = die
    result = cli("generate", "a red circle", "--num-frames", "48")
    assert (result.code, result.err) == (2, "error: the device is gone: start again\n")
    assert all_files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompts"),
        (["  "], "a prompt is empty"),
        (["a", "--prompts-file", "missing.txt"], "cannot read --prompts-file missing.txt"),
        (["a", "--kv-format", "q9"], "unknown page format 'q9'"),
        (["a", "--kv-memory", "2 parsecs"], "--kv-memory is '2 parsecs'"),
        (["a", "--kv-memory", "-1"], "--kv-memory is '-1'"),
        (["a", "--kv-memory", "99999999TiB"], "1024TiB"),
        (["a", "--max-streams", "0"], "--max-streams"),
        (["a", "--num-frames", "0"], "--num-frames"),
        (["a", "--num-frames", "many"], "--num-frames"),
        (["a", "--num-frames", "99999999999"], "num_frames is 99999999999"),
        (["a", "--seconds", "-1"], "--seconds is -1.0"),
        (["a", "--seconds", "nan"], "--seconds is nan"),
        (["a", "--seconds", "inf"], "--seconds is inf"),
        (["a", "--seconds", "1", "--num-frames", "2"], "give one of them"),
        (["a", "--seed", "-1"], "--seed"),
        (["a", "--scale", "0"], "--scale"),
        (["a", "--device", "abacus"], "device is 'abacus'"),
        (["a", "--output-dir", "taken"], "cannot write to the folder taken"),
        (["a", "--output-dir", "taken/below"], "cannot write to the folder taken/below"),
        (["a", "--json", "folder"], "is a folder"),
        (["a", "--json", "taken/run.json"], "cannot write to the folder taken"),
        (["a", "--frames", "7"], "--frames"),
        (["a red circle", "an endless square"], "needs 900 pages of 600"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    cli: CommandLine, engine: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder").mkdir()
    result = cli("generate", *arguments)
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert result.out == ""
    assert sorted(os.listdir(tmp_path)) == ["folder", "taken"]
    assert all_files(tmp_path) == ["taken"]


def test_options_reach_the_engine(
    cli: CommandLine, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[EngineConfig] = []

    def open_engine(config: EngineConfig, *, prompt: str, family: Any = None) -> Any:
        configs.append(config)
        return engine

    monkeypatch.setattr(make_videos, "open_engine", open_engine)
    options = "--kv-format dense --max-streams 3 --kv-memory 64MiB --device cpu --batch-invariant"
    assert cli("generate", "a red circle", "--num-frames", "12", *options.split()).code == 0
    (config,) = configs
    assert (config.kv_format, config.max_streams, config.kv_memory) == ("dense", 3, 64 * 2**20)
    assert (config.device, config.batch_invariant) == ("cpu", True)
