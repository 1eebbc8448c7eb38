"""One video of a run: its request, its file, and how far it is."""

import time
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qvg_engine.errors import OutputError
from qvg_engine.output import VideoOutput
from qvg_engine.request import VideoRequest
from qvg_engine.video.writer import VideoWriter

_WATCHABLE_PIXELS = 256


class JobState(Enum):
    """Where a video stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


class VideoJob:
    """Writes the chunks of one stream to one file, and notes when what happened.

    Times are seconds since the request was added. `scale` None enlarges videos that are too small
    to watch by a whole factor, so that the shorter side has at least 256 pixels. The file begins
    with the frames `start`, which do not count as made.
    """

    def __init__(
        self,
        request: VideoRequest,
        *,
        path: Path,
        frames_per_second: float,
        scale: int | None,
        overwrite: bool,
        start: NDArray[np.uint8] | None = None,
    ) -> None:
        self.request = request
        self.path = path
        self.state = JobState.WAITING
        self.error: str | None = None
        self.num_frames = 0
        self.first_chunk_s: float | None = None
        self.wall_s: float | None = None
        self._frames_per_second = frames_per_second
        self._scale = scale
        self._overwrite = overwrite
        self._start = start
        self._writer: VideoWriter | None = None
        self._added_at = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written."""
        return self.state not in (JobState.WAITING, JobState.RUNNING)

    def note_added(self) -> None:
        """Start this video's clock."""
        self._added_at = time.perf_counter()

    def take(self, output: VideoOutput) -> None:
        """Write what a step brought; a file that cannot be written fails this video alone."""
        if self.is_over:
            return
        try:
            if output.frames is not None and len(output.frames):
                self._write(output.frames)
            if output.finish_reason == "length":
                self._finish()
        except OutputError as error:
            self.fail(str(error))
        if output.finish_reason == "error":
            self.fail(output.error or "the stream failed")
        elif output.finish_reason == "abort":
            self.stop()

    def fail(self, message: str) -> None:
        """Remove what was written and note why."""
        self.state, self.error = JobState.FAILED, message
        self._discard()

    def stop(self) -> None:
        """Remove what was written of a video that is not complete."""
        if not self.is_over:
            self.state = JobState.STOPPED
        self._discard()

    def _write(self, frames: NDArray[np.uint8]) -> None:
        if self.first_chunk_s is None:
            self.first_chunk_s = time.perf_counter() - self._added_at
        if self._writer is None:
            self._writer = VideoWriter(
                self.path,
                frames_per_second=self._frames_per_second,
                scale=self._scale or _watchable_scale(*frames.shape[1:3]),
                overwrite=self._overwrite,
            )
            if self._start is not None:
                self._writer.write(self._start)
        self.state = JobState.RUNNING
        self._writer.write(frames)
        self.num_frames += len(frames)

    def _finish(self) -> None:
        if self._writer is None:
            raise OutputError(f"cannot write {self.path}: no frames were made")
        self.path = self._writer.close()
        self.wall_s = time.perf_counter() - self._added_at
        self.state = JobState.DONE

    def _discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()
        if self.state is not JobState.DONE:
            self.num_frames = 0


def _watchable_scale(height: int, width: int) -> int:
    return max(1, -(-_WATCHABLE_PIXELS // min(height, width)))
