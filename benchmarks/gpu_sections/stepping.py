"""Steps of an engine around a randomly initialised Wan 1.3B, with full windows."""

import time
import warnings
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_sections.case import Case, OutOfTime, Row
from benchmarks.gpu_sections.engines import FRAMES_PER_CHUNK, PASSES_PER_CHUNK, Engines, wait
from benchmarks.gpu_sections.setup import Setup
from qvg_engine import VideoEngine

FORMATS = ("dense", "bf16", "q2")
MEASURED_CHUNKS = 4


class Stepping:
    """The cases of this section."""

    def __init__(self, setup: Setup, engines: Engines) -> None:
        self._setup = setup
        self._engines = engines
        self._dense_ms: dict[int, float] = {}

    def cases(self) -> Iterator[Case]:
        """Few streams first; for each number of them, the dense cache first."""
        for streams in self._setup.streams:
            for name in FORMATS:
                yield Case(
                    {"streams": streams, "format": name},
                    partial(self._measure, streams, name),
                )
        self._engines.forget()

    def _measure(self, streams: int, name: str, left: float) -> Row:
        setup = self._setup
        deadline = time.monotonic() + left
        engine = self._engines.make(
            streams, name, frames=2 * setup.window_frames, window_frames=setup.window_frames
        )
        self._fill(engine, streams, deadline)
        start = time.monotonic()
        waits = _steps_with_waits(engine, setup.device)
        chunk_s = time.monotonic() - start
        if MEASURED_CHUNKS * chunk_s > deadline - time.monotonic():
            raise OutOfTime(
                f"{MEASURED_CHUNKS} chunks would take {MEASURED_CHUNKS * chunk_s:.0f} s"
            )
        before = engine.stats().num_steps
        start = time.perf_counter()
        for _ in range(MEASURED_CHUNKS * PASSES_PER_CHUNK):
            engine.step()
        wait(setup.device)
        seconds = time.perf_counter() - start
        stats = engine.stats()
        steps = stats.num_steps - before
        assert stats.num_running == streams, stats
        row: Row = {"ms a step": 1000 * seconds / steps, "steps": steps}
        if waits is not None:
            row["host waits a step"] = waits / PASSES_PER_CHUNK
        if setup.device.type == "cuda":
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        row |= {"kv_ratio": stats.kv_ratio, "total_ratio": stats.total_ratio}
        if name == "dense":
            self._dense_ms[streams] = row["ms a step"]
        if streams in self._dense_ms:
            row["to dense"] = row["ms a step"] / self._dense_ms[streams]
        return row

    def _fill(self, engine: VideoEngine, streams: int, deadline: float) -> None:
        """Streams whose window is full, all at the same pass of a chunk."""
        frames = FRAMES_PER_CHUNK * (MEASURED_CHUNKS + 10)
        for number in range(streams):
            engine.add_request(
                self._engines.request(
                    number, frames=frames, context_frames=self._setup.window_frames
                )
            )
        finished: set[str] = set()
        while len(finished) < streams:
            finished |= {out.request_id for out in engine.step() if out.chunk_index is not None}
            if time.monotonic() > deadline:
                raise OutOfTime("the windows were not full in time")


def _steps_with_waits(engine: VideoEngine, device: torch.device) -> int | None:
    """One chunk's steps, and how often the host waited for the device in them; None on a CPU."""
    if device.type == "cpu":
        for _ in range(PASSES_PER_CHUNK):
            engine.step()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(PASSES_PER_CHUNK):
                engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wait(device)
    return sum("synchroniz" in str(warning.message) for warning in caught)
