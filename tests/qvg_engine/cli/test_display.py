import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.cli import run
from qvg_engine.cli.app import main
from qvg_engine.cli.display import make_display
from qvg_engine.cli.interrupt import StopSignals
from qvg_engine.cli.video_job import JobState, VideoJob
from qvg_engine.engine_stats import EngineStats
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


def test_without_pages_there_is_no_compression(tmp_path: Path, engine: Any) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    stats = msgspec.structs.replace(engine.stats(), pages_used=0, kv_ratio_now=0.0)
    with make_display(console) as display:
        display.show([make_job(tmp_path, "a red circle", JobState.WAITING)], stats)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "pages 0 of 100" in shown
    assert "compression" not in shown


class Watched:
    """Bars, and beside them what the pages of the engine hold whenever they are shown."""

    def __init__(self, engine: VideoEngine) -> None:
        self._engine = engine
        self.console = Console(file=io.StringIO(), force_terminal=True, width=200)
        self._bars = make_display(self.console)
        self.counted: list[str] = []

    def __enter__(self) -> "Watched":
        self._bars.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._bars.__exit__(*details)

    def show(self, jobs: Sequence[VideoJob], stats: EngineStats) -> None:
        self._bars.show(jobs, stats)
        cache = self._engine._cache
        manager, layout = cache.block_manager, cache.layout
        assert manager.codebooks is not None
        if manager.num_used:
            # K and V, of two bytes an element.
            vector = 2 * 2 * self._engine.family.geometry.elements(1)
            pages = manager.num_used * layout.page_bytes
            # A head of 128 numbers takes 256 bytes in bf16, 128 in a codebook, 34 in a refinement.
            rows = manager.codebooks.pool.num_reserved_rows * vector // 2
            refinements = manager.codebooks.refinements.num_reserved * 64 * vector // 256 * 34
            in_bf16 = manager.num_live_tokens() * vector
            self.counted.append(f"{in_bf16 / (pages + rows + refinements):.2f}")


def test_compression_is_shown_as_it_is_at_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_SHOW_EVERY_S", 0.0)
    engine = VideoEngine(EngineConfig(kv_format="q2", kv_memory=16 * 2**20, device="cpu"))
    jobs = [
        VideoJob(
            VideoRequest(request_id=f"{length}", prompt="a red circle", num_frames=length),
            path=tmp_path / f"{length}.mp4",
            frames_per_second=16,
            scale=1,
            overwrite=False,
        )
        for length in (24, 84)
    ]
    with StopSignals() as stop, Watched(engine) as watched:
        run.run_jobs(engine, jobs, display=watched, stop=stop)
    assert isinstance(watched.console.file, io.StringIO)
    shown = re.findall(r"compression (\S+)x", watched.console.file.getvalue())
    assert shown == watched.counted
    ratios = [float(ratio) for ratio in shown]
    assert ratios[0] < 5.5, "codebooks are reserved at once, tokens come one chunk after the other"
    assert ratios[-1] > 6, "a full window pays for its codebooks"


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
