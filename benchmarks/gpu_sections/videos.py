"""Whole videos of many streams, from their first chunk on, windowed and with full history."""

import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_sections.case import Case, OutOfTime, Row
from benchmarks.gpu_sections.engines import FRAMES_PER_CHUNK, Engines, wait
from benchmarks.gpu_sections.setup import Setup

FORMATS = ("dense", "q2")
HISTORIES = ("window", "full")
# What pages of the dense cache may take of the memory that is free: the rest is for a workspace,
# activations and texts.
_PART_FOR_PAGES = 0.75


class Videos:
    """The cases of this section.

    Of the time that is left each case takes its part, and makes as many of the chunks as fit.
    """

    def __init__(self, setup: Setup, engines: Engines) -> None:
        self._setup = setup
        self._engines = engines
        self._dense_seconds: dict[str, list[float]] = {}

    def cases(self) -> Iterator[Case]:
        """For each history the dense cache first."""
        runs = [(history, name) for history in HISTORIES for name in FORMATS]
        for number, (history, name) in enumerate(runs):
            yield Case(
                {"streams": self._setup.video_streams, "history": history, "format": name},
                partial(self._measure, history, name, len(runs) - number),
            )
        self._engines.forget()

    def _measure(self, history: str, name: str, num_cases: int, left: float) -> Row:
        setup, engines = self._setup, self._engines
        deadline = time.monotonic() + left / num_cases
        window = setup.window_frames if history == "window" else None
        chunks = self._chunks_that_fit(window)
        frames = FRAMES_PER_CHUNK * chunks
        engine = engines.make(setup.video_streams, name, frames=frames, window_frames=window)
        for number in range(setup.video_streams):
            engine.add_request(engines.request(number, frames=frames))
        # After each chunk of all streams, the seconds since the first began.
        ends: list[float] = []
        done = dict.fromkeys((f"stream-{n}" for n in range(setup.video_streams)), 0)
        start = time.perf_counter()
        while len(ends) < chunks and time.monotonic() < deadline:
            for output in engine.step():
                assert output.error is None, output.error
                done[output.request_id] += output.latents is not None
            if min(done.values()) > len(ends):
                wait(setup.device)
                ends.append(time.perf_counter() - start)
        if not ends:
            raise OutOfTime("not even the first chunk was done in time")
        if name == "dense":
            self._dense_seconds[history] = ends
        stats = engine.stats()
        row: Row = {"chunks": len(ends), "s": ends[-1], "s a chunk": ends[-1] / len(ends)}
        dense = self._dense_seconds.get(history)
        if dense is not None:
            common = min(len(dense), len(ends))
            row |= {"chunks compared": common, "to dense": ends[common - 1] / dense[common - 1]}
        if setup.device.type == "cuda":
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        return row | {"kv_ratio": stats.kv_ratio, "total_ratio": stats.total_ratio}

    def _chunks_that_fit(self, window: int | None) -> int:
        """Fewer than are wanted where a dense cache of all of them has no room."""
        setup, wanted = self._setup, self._setup.video_chunks
        if window is not None or setup.device.type != "cuda":
            return wanted
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(setup.device)
        streams, chunk = setup.video_streams, FRAMES_PER_CHUNK
        fits = [
            count
            for count in range(1, wanted + 1)
            if self._engines.page_bytes(streams, "dense", frames=count * chunk)
            <= _PART_FOR_PAGES * free
        ]
        return max(fits, default=1)
