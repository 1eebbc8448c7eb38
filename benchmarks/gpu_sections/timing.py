"""How long something takes on a device, and the memory that it needs on top."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.gpu_sections.case import OutOfTime

FEWEST_RUNS = 20
_MOST_RUNS = 100
_SECONDS = 0.5


class Timing(NamedTuple):
    """ms: the median; runs: how many; peak_bytes: allocated at most on top of what was before."""

    ms: float
    runs: int
    peak_bytes: int

    def row(self) -> dict[str, float]:
        """The figures for a report."""
        return {"ms": self.ms, "runs": self.runs, "peak_mb": self.peak_bytes / 1e6}


def measure(
    run: Callable[[], object],
    device: torch.device,
    *,
    seconds: float,
    fewest_runs: int = FEWEST_RUNS,
) -> Timing:
    """The median of at least `fewest_runs` runs, after runs that compile and warm up.

    On a GPU each run is timed by events on the device, none waits for the other. Raises
    `OutOfTime` if that takes more than `seconds`.
    """
    start = time.monotonic()
    run()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    again = time.perf_counter()
    run()
    _wait(device)
    expected = time.perf_counter() - again
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    if fewest_runs * expected > seconds - (time.monotonic() - start):
        raise OutOfTime(f"{fewest_runs} runs would take {fewest_runs * expected:.1f} s")
    wanted = int(_SECONDS / max(expected, 1e-6))
    runs = fewest_runs if device.type == "cpu" else max(fewest_runs, min(_MOST_RUNS, wanted))
    times = _on_gpu(run, runs) if device.type == "cuda" else _on_cpu(run, runs)
    return Timing(statistics.median(times), runs, peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _on_gpu(run: Callable[[], object], runs: int) -> list[float]:
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(runs)
    ]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _on_cpu(run: Callable[[], object], runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times
