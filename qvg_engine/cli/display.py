"""What a person sees while videos are made: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from qvg_engine.cli.video_job import JobState, VideoJob
from qvg_engine.engine_stats import EngineStats

_LINE_EVERY_S = 10.0
_LABEL_LENGTH = 48


class Display(Protocol):
    """Shows the state of a run."""

    def __enter__(self) -> "Display": ...

    def __exit__(self, *details: object) -> None: ...

    def show(self, jobs: Sequence[VideoJob], stats: EngineStats) -> None:
        """Show how things stand; called a few times a second, between steps."""
        ...


def make_display(console: Console) -> Display:
    """Return bars for a terminal, and lines for anything else."""
    return _Bars(console) if console.is_terminal else _Lines(console)


class _Bars:
    """A bar for every running stream, and a line for the engine."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            auto_refresh=False,
        )
        self._status = Text()
        self._live = Live(
            Group(self._progress, self._status),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started_at = time.perf_counter()

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._live.stop()

    def show(self, jobs: Sequence[VideoJob], stats: EngineStats) -> None:
        for job in jobs:
            name = job.request.request_id
            if job.state is JobState.RUNNING:
                if name not in self._tasks:
                    self._tasks[name] = self._progress.add_task(
                        _label(job), total=job.request.num_frames
                    )
                self._progress.update(self._tasks[name], completed=job.num_frames)
            elif job.is_over and name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))
        elapsed_s = time.perf_counter() - self._started_at
        self._status.plain = _status(jobs, stats, elapsed_s)
        self._live.refresh()


class _Lines:
    """A line when a video ends, and one every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: set[str] = set()
        self._started_at = time.perf_counter()
        self._line_at = self._started_at + _LINE_EVERY_S

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *details: object) -> None:
        return None

    def show(self, jobs: Sequence[VideoJob], stats: EngineStats) -> None:
        for job in jobs:
            if job.is_over and job.request.request_id not in self._told:
                self._told.add(job.request.request_id)
                self._print(f"{job.state.value}: {_label(job)}")
        now = time.perf_counter()
        if now >= self._line_at:
            self._line_at = now + _LINE_EVERY_S
            self._print(_status(jobs, stats, now - self._started_at))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _label(job: VideoJob) -> str:
    prompt = job.request.prompt or job.request.request_id
    return prompt if len(prompt) <= _LABEL_LENGTH else f"{prompt[: _LABEL_LENGTH - 3]}..."


def _status(jobs: Sequence[VideoJob], stats: EngineStats, elapsed_s: float) -> str:
    num_frames = sum(job.num_frames for job in jobs)
    num_done = sum(job.state is JobState.DONE for job in jobs)
    rate = num_frames / elapsed_s if elapsed_s > 0 else 0.0
    parts = [
        f"{num_done} of {len(jobs)} videos done, {stats.num_running} running, "
        f"{stats.num_waiting} waiting",
        f"{num_frames:,} frames, {rate:.1f} frames/s",
        f"pages {stats.pages_used:,} of {stats.pages_total:,}",
    ]
    if stats.pages_used:
        parts.append(f"compression {stats.kv_ratio_now:.2f}x")
    return " | ".join(parts)
