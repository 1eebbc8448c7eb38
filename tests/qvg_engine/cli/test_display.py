import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qvg_engine.cli import run
from qvg_engine.cli.app import main
from qvg_engine.cli.display import make_display
from qvg_engine.cli.video_job import JobState, VideoJob
from qvg_engine.request import VideoRequest


def make_job(tmp_path: Path, prompt: str, state: JobState, num_frames: int = 0) -> VideoJob:
    request = VideoRequest(request_id=prompt, prompt=prompt, num_frames=100)
    job = VideoJob(
        request, path=tmp_path / "a.mp4", frames_per_second=16, scale=None, overwrite=False
    )
    job.state, job.num_frames = state, num_frames
    return job


def test_bars_show_running_streams_and_the_engine(tmp_path: Path, engine: Any) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    jobs = [
        make_job(tmp_path, "a red circle", JobState.RUNNING, 25),
        make_job(tmp_path, "a blue square", JobState.WAITING),
        make_job(tmp_path, "a green circle", JobState.DONE, 100),
    ]
    with make_display(console) as display:
        display.show(jobs, engine.stats())
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "a red circle" in shown
    assert "25/100" in shown
    assert "a blue square" not in shown
    assert "1 of 3 videos done" in shown
    assert "pages 12 of 100" in shown
    assert "compression 1.50x" in shown


def test_lines_tell_each_end_once(tmp_path: Path, engine: Any) -> None:
    console = Console(file=io.StringIO(), width=150)
    jobs = [make_job(tmp_path, "a [red] circle", JobState.DONE, 100)]
    with make_display(console) as display:
        display.show(jobs, engine.stats())
        display.show(jobs, engine.stats())
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "done: a [red] circle\n"


def test_a_terminal_gets_the_table_below_its_bars(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(run, "_SHOW_EVERY_S", 0.0)
    assert main(["generate", "a red circle", "--num-frames", "24"]) == 0
    shown = capsys.readouterr().out
    assert "12/24" in shown
    assert shown.rindex("compression with workspace") > shown.rindex("videos/a-red-circle")
