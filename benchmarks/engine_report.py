"""Where the time of the embedded model's videos goes, and what batching and invariance cost.

    python benchmarks/engine_report.py --output reports

writes `engine_report.md` and `engine_report.json`: the engine's own share of a step, the cost of
`batch_invariant`, videos together against one after the other, and the KV-cache in numbers. All
figures of one row pair come from one run on one machine.
"""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from qvg_engine import EngineConfig, VideoEngine, VideoRequest, __version__
from qvg_engine.block_manager.format import FORMATS
from qvg_engine.models.pocket.clips import all_scenes

NUM_STREAMS = 4
NUM_ROUNDS = 3
WARM_UP_FRAMES = 240


class Stopwatch:
    """Adds up the time spent in wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def make_engine(**config: Any) -> VideoEngine:
    """An engine of the embedded model on the CPU."""
    return VideoEngine(EngineConfig(device="cpu", **config))


def add_videos(engine: VideoEngine, *, num_frames: int, count: int) -> None:
    """Queue videos with different prompts."""
    for number, scene in enumerate(all_scenes()[:count]):
        request = VideoRequest(
            request_id=f"video-{number}", prompt=scene.prompt, num_frames=num_frames, seed=number
        )
        engine.add_request(request)


def watch_decoding(engine: VideoEngine) -> Stopwatch:
    """Measures the time in the VAE."""
    codec = engine.family.codec
    assert codec is not None
    watch = Stopwatch()
    codec.decode_chunk = watch.wrap(codec.decode_chunk)  # type: ignore[method-assign]
    return watch


def watch_storing(engine: VideoEngine) -> Stopwatch:
    """Measures the time in which K and V are put into pages, fits of codebooks among it."""
    store, watch = engine._cache.store, Stopwatch()
    store.write = watch.wrap(store.write)  # type: ignore[method-assign]
    return watch


def step_shares(num_frames: int) -> dict[str, float]:
    """Milliseconds of a median step with full windows, by where they go."""
    engine = make_engine()
    network, decoding = Stopwatch(), watch_decoding(engine)
    engine.family.forward = network.wrap(engine.family.forward)  # type: ignore[method-assign]
    add_videos(engine, num_frames=num_frames, count=NUM_STREAMS)
    rows: list[tuple[float, float, float]] = []
    while engine.has_unfinished_requests():
        before = (time.perf_counter(), network.seconds, decoding.seconds)
        engine.step()
        after = (time.perf_counter(), network.seconds, decoding.seconds)
        rows.append(tuple(b - a for a, b in zip(before, after, strict=True)))  # type: ignore[arg-type]
    steady = rows[len(rows) // 2 :]
    total = sum(row[0] for row in steady)
    forward, decode = sum(row[1] for row in steady), sum(row[2] for row in steady)
    return {
        "step_ms": 1000 * statistics.mean(row[0] for row in steady),
        "network_and_attention_share": forward / total,
        "vae_share": decode / total,
        "host_share": (total - forward - decode) / total,
    }


def seconds_for(num_frames: int, *, count: int, together: bool, **config: Any) -> float:
    """Wall time of `count` videos, in one batch or one after the other, after a warm-up."""
    engine = make_engine(max_streams=count if together else 1, **config)
    add_videos(engine, num_frames=24, count=1)
    while engine.has_unfinished_requests():
        engine.step()
    start = time.perf_counter()
    add_videos(engine, num_frames=num_frames, count=count)
    while engine.has_unfinished_requests():
        engine.step()
    return time.perf_counter() - start


def batching_figures(num_frames: int) -> dict[str, float]:
    """The least wall times of the same videos: together, one by one, and with batch_invariant."""
    ways: dict[str, dict[str, Any]] = {
        "together_s": {"together": True},
        "one_by_one_s": {"together": False},
        "invariant_s": {"together": True, "batch_invariant": True},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(NUM_ROUNDS):
        for name, options in ways.items():
            times[name].append(seconds_for(num_frames, count=NUM_STREAMS, **options))
    return {name: min(found) for name, found in times.items()}


def cache_figures(num_frames: int) -> dict[str, dict[str, float]]:
    """The KV-cache at its peak by format, and the least time that the videos took.

    Formats take turns, so that a machine that is slow for a while is not the fault of one.
    """
    figures: dict[str, dict[str, float]] = {}
    for kv_format in FORMATS:
        # The first chunks compile what the format needs.
        seconds_for(36, count=1, together=True, kv_format=kv_format)
    for _ in range(NUM_ROUNDS):
        for kv_format in FORMATS:
            found = format_figures(kv_format, num_frames)
            if kv_format not in figures or found["wall_s"] < figures[kv_format]["wall_s"]:
                figures[kv_format] = found
    return figures


def format_figures(kv_format: str, num_frames: int) -> dict[str, float]:
    """The videos in one format, once."""
    engine = make_engine(kv_format=kv_format)
    storing, decoding = watch_storing(engine), watch_decoding(engine)
    add_videos(engine, num_frames=num_frames, count=NUM_STREAMS)
    start = time.perf_counter()
    while engine.has_unfinished_requests():
        engine.step()
    wall_s = time.perf_counter() - start
    stats = engine.stats()
    return {
        "wall_s": wall_s,
        "storing_share": storing.seconds / (wall_s - storing.seconds - decoding.seconds),
        "kv_bytes_peak": stats.kv_bytes_peak,
        "codebook_bytes": stats.codebook_bytes,
        "refinement_bytes": stats.refinement_bytes,
        "kv_bytes_bf16": stats.kv_bytes_bf16,
        "kv_ratio": stats.kv_ratio,
        "total_ratio": stats.total_ratio,
        "workspace_bytes": stats.workspace_bytes,
    }


def measure(num_frames: int) -> dict[str, Any]:
    """All figures of the report."""
    measured: dict[str, Any] = {
        "version": __version__,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "num_frames": num_frames,
        "num_streams": NUM_STREAMS,
    }
    parts: dict[str, Callable[[], Any]] = {
        "step": lambda: step_shares(num_frames),
        "batching": lambda: batching_figures(num_frames),
        "cache": lambda: cache_figures(num_frames),
    }
    for name, part in track(list(parts.items()), description="measuring"):
        measured[name] = part()
    batching = measured["batching"]
    measured["invariant_cost"] = batching["invariant_s"] / batching["together_s"]
    measured["batching_gain"] = batching["one_by_one_s"] / batching["together_s"]
    measured["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return measured


def as_markdown(measured: dict[str, Any]) -> str:
    """The report for people."""
    step, machine = measured["step"], measured["machine"]
    lines = [
        "# Engine report",
        "",
        f"Embedded model, {measured['num_streams']} videos of {measured['num_frames']} frames on "
        f"{machine['cores']} cores ({machine['processor']}, torch {machine['torch']}).",
        "",
        "| figure | value |",
        "| --- | --- |",
        f"| a step with full windows | {step['step_ms']:.0f} ms |",
        f"| of it network and attention | {step['network_and_attention_share']:.1%} |",
        f"| of it VAE | {step['vae_share']:.1%} |",
        f"| of it the engine itself | {step['host_share']:.2%} |",
        f"| videos together against one by one | {measured['batching_gain']:.2f}x as fast |",
        f"| `batch_invariant` | {measured['invariant_cost']:.2f}x the time |",
    ]
    for kv_format, figures in measured["cache"].items():
        parts = ("kv_bytes_peak", "codebook_bytes", "refinement_bytes")
        lines.append(
            f"| `{kv_format}` pages at their peak | "
            f"{sum(figures[part] for part in parts) / 1e6:.1f} MB, "
            f"kv_ratio {figures['kv_ratio']:.2f}, with workspace {figures['total_ratio']:.2f}, "
            f"{figures['wall_s'] / measured['cache']['bf16']['wall_s']:.2f}x the time of bf16, "
            f"storing {figures['storing_share']:.1%} of the time of the passes |"
        )
    return "\n".join(lines) + "\n"


def main(
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    num_frames: Annotated[int, typer.Option(min=24, help="Frames of each video.")] = (
        2 * WARM_UP_FRAMES
    ),
) -> None:
    """Measure, and write Markdown and JSON."""
    measured = measure(num_frames)
    output.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("json", json.dumps(measured, indent=1)), ("md", as_markdown(measured))):
        temporary = output / f".engine_report.{suffix}.part"
        temporary.write_text(text)
        temporary.rename(output / f"engine_report.{suffix}")
    typer.echo(as_markdown(measured))


if __name__ == "__main__":
    typer.run(main)
