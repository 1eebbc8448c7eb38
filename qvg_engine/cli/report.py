"""What a run took: the JSON file and the table. Byte counts and ratios come from the engine."""

import os
import resource
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from qvg_engine.block_manager.format import LayerFormats
from qvg_engine.cli.sizes import format_bytes
from qvg_engine.cli.video_job import JobState, VideoJob
from qvg_engine.engine_stats import EngineStats
from qvg_engine.errors import OutputError


class VideoRow(msgspec.Struct, frozen=True, kw_only=True):
    """A video that was written; seconds count from the moment its request was added."""

    path: str
    prompt: str
    seed: int
    num_frames: int
    first_chunk_s: float
    wall_s: float


class FormatNames(msgspec.Struct, frozen=True, kw_only=True):
    """The names of a layer's formats."""

    keys: str
    values: str


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, as `--json` writes it.

    `wall_s` runs from the first request added to the last file closed, `warmup_s` (loading and
    compiling) lies before it. The `kv_` figures hold at the step of peak page use; `kv_ratio` is
    `kv_bytes_bf16` over `kv_bytes_peak`, `codebook_bytes` and `refinement_bytes` together, and
    `total_ratio` counts the workspace, too. `kv_formats` are those of every layer, in order, or one
    pair for all of them.
    """

    videos: tuple[VideoRow, ...]
    wall_s: float
    warmup_s: float
    frames_per_s: float
    num_steps: int
    mean_streams_per_step: float
    kv_bytes_peak: int
    kv_bytes_bf16: int
    kv_ratio: float
    total_ratio: float
    codebook_bytes: int
    refinement_bytes: int
    workspace_bytes: int
    peak_rss_bytes: int
    kv_formats: tuple[FormatNames, ...]


def make_report(
    jobs: Sequence[VideoJob],
    stats: EngineStats,
    *,
    wall_s: float,
    warmup_s: float,
    formats: Sequence[LayerFormats],
) -> RunReport:
    """Put together what is known after the last file was closed."""
    rows = tuple(_video_row(job) for job in jobs if job.state is JobState.DONE)
    num_frames = sum(row.num_frames for row in rows)
    return RunReport(
        videos=rows,
        wall_s=wall_s,
        warmup_s=warmup_s,
        frames_per_s=num_frames / wall_s if wall_s > 0 else 0.0,
        num_steps=stats.num_steps,
        mean_streams_per_step=stats.mean_streams_per_step,
        kv_bytes_peak=stats.kv_bytes_peak,
        kv_bytes_bf16=stats.kv_bytes_bf16,
        kv_ratio=stats.kv_ratio,
        total_ratio=stats.total_ratio,
        codebook_bytes=stats.codebook_bytes,
        refinement_bytes=stats.refinement_bytes,
        workspace_bytes=stats.workspace_bytes,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        kv_formats=tuple(
            FormatNames(keys=pair.keys.name, values=pair.values.name) for pair in formats
        ),
    )


def write_json(report: RunReport, path: Path) -> None:
    """Write `report` to `path`, whole or not at all; OutputError if that fails."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}; name another file") from error


def print_report(jobs: Sequence[VideoJob], report: RunReport, console: Console) -> None:
    """Print a row for every video and the figures of the run."""
    console.print(_video_table(jobs))
    console.print(_figures_table(report))


def _video_row(job: VideoJob) -> VideoRow:
    assert job.first_chunk_s is not None, "a finished video has a first chunk"
    assert job.wall_s is not None, "a finished video has an end"
    return VideoRow(
        path=str(job.path.resolve()),
        prompt=job.request.prompt or "",
        seed=job.request.seed,
        num_frames=job.num_frames,
        first_chunk_s=job.first_chunk_s,
        wall_s=job.wall_s,
    )


def _video_table(jobs: Sequence[VideoJob]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("video", overflow="fold")
    for heading in ("seed", "frames", "first chunk", "done after"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for job in jobs:
        table.add_row(
            str(job.path) if job.state is JobState.DONE else job.request.prompt,
            str(job.request.seed),
            f"{job.num_frames:,}",
            _seconds(job.first_chunk_s),
            _seconds(job.wall_s),
            job.state.value,
        )
    return table


def _figures_table(report: RunReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    rows = [
        ("time, without warm-up", f"{report.wall_s:.1f} s"),
        ("warm-up (load, compile)", f"{report.warmup_s:.1f} s"),
        ("frames per second", f"{report.frames_per_s:.1f}"),
        ("steps", f"{report.num_steps:,}"),
        ("streams per step, mean", f"{report.mean_streams_per_step:.2f}"),
        ("KV-cache at its peak", format_bytes(report.kv_bytes_peak)),
        ("the same tokens in bf16", format_bytes(report.kv_bytes_bf16)),
        ("compression", f"{report.kv_ratio:.2f}x"),
        ("compression with workspace", f"{report.total_ratio:.2f}x"),
        ("codebooks", format_bytes(report.codebook_bytes)),
        ("refined newest tokens", format_bytes(report.refinement_bytes)),
        ("workspace", format_bytes(report.workspace_bytes)),
        ("peak memory of the process", format_bytes(report.peak_rss_bytes)),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
