"""The loop that drives an engine until every video is written or the user stops it."""

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from qvg_engine.cli.display import Display
from qvg_engine.cli.interrupt import StopSignals
from qvg_engine.cli.video_job import JobState, VideoJob
from qvg_engine.engine_stats import EngineStats
from qvg_engine.output import VideoOutput
from qvg_engine.request import VideoRequest

_SHOW_EVERY_S = 0.25


class Engine(Protocol):
    """What the loop needs of a VideoEngine."""

    def add_request(self, request: VideoRequest) -> tuple[str, ...]: ...

    def step(self) -> list[VideoOutput]: ...

    def abort_request(self, request_id: str) -> bool: ...

    def has_unfinished_requests(self) -> bool: ...

    def stats(self) -> EngineStats: ...


def run_jobs(
    engine: Engine, jobs: Sequence[VideoJob], *, display: Display, stop: StopSignals
) -> float:
    """Make all videos; returns the seconds from the first add to the last file closed.

    However it ends, complete videos keep their files and the others leave none. A video that fails
    does not touch the others; an error in a request is raised before anything runs.
    """
    started_at = time.perf_counter()
    by_id = {job.request.request_id: job for job in jobs}
    show_at = started_at
    try:
        for job in jobs:
            job.note_added()
            _warn_of_unknown_words(job, engine.add_request(job.request))
        while engine.has_unfinished_requests() and stop.received is None:
            for output in engine.step():
                _deliver(output, by_id[output.request_id], engine)
            if time.perf_counter() >= show_at:
                display.show(jobs, engine.stats())
                show_at = time.perf_counter() + _SHOW_EVERY_S
        wall_s = time.perf_counter() - started_at
        display.show(jobs, engine.stats())
        return wall_s
    finally:
        for job in jobs:
            if not job.is_over:
                job.stop()


def _warn_of_unknown_words(job: VideoJob, words: tuple[str, ...]) -> None:
    if words:
        listed = ", ".join(repr(word) for word in words)
        print(
            f"warning: the model does not know {listed}, in {job.request.prompt!r}", file=sys.stderr
        )


def _deliver(output: VideoOutput, job: VideoJob, engine: Engine) -> None:
    job.take(output)
    if job.state is JobState.FAILED and not output.finished:
        engine.abort_request(job.request.request_id)
