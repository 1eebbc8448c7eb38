"""What `qvg-engine doctor` looks at and prints."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from qvg_engine.cli.attention_text import describe_attention
from qvg_engine.cli.console import make_console
from qvg_engine.cli.exit_code import ExitCode
from qvg_engine.cli.installed import list_installed
from qvg_engine.cli.kernel_checks import check_kernels
from qvg_engine.cli.memory import list_memory
from qvg_engine.cli.memory_text import describe_memory, format_table
from qvg_engine.cli.plan_text import describe_plan
from qvg_engine.cli.sizes import format_bytes
from qvg_engine.cli.video_family import load_video_family, with_size
from qvg_engine.cli.video_length import VideoLength
from qvg_engine.config import EngineConfig
from qvg_engine.memory_plan import plan_memory
from qvg_engine.plan import plan_capacity


def examine(
    engine_settings: dict[str, Any],
    length: VideoLength,
    *,
    size: tuple[int, int] | None = None,
    gpu_bytes: int | None = None,
) -> int:
    """Print the findings; the exit code says whether everything needed is there and fits.

    With `gpu_bytes` that much is shared out for every format, instead of planning the settings'
    own. Raises a QvgError for settings or weights that cannot be used.
    """
    console = make_console()
    packages = list_installed()
    _print(console, "installed", [(package.name, package.status) for package in packages])
    kernels = check_kernels()
    _print(
        console, "kernels", [(f"{check.name} ({check.device})", check.status) for check in kernels]
    )
    memory = [
        (
            figures.device,
            f"{format_bytes(figures.free_bytes)} free of {format_bytes(figures.total_bytes)}",
        )
        for figures in list_memory()
    ]
    _print(console, "memory", memory)
    config = with_size(EngineConfig(**engine_settings), size)
    family = load_video_family(config, headers_only=True)
    _print(console, "attention", describe_attention(config, family))
    assert family.codec is not None, "a family that makes videos has a codec"
    frames_per_second = family.codec.frames_per_second
    num_frames = length.count_frames(frames_per_second)
    works = all(check.error is None for check in kernels)
    if gpu_bytes is not None:
        shares = plan_memory(
            config,
            family,
            num_frames=num_frames,
            num_streams=engine_settings.get("max_streams", 1),
            gpu_bytes=gpu_bytes,
        )
        title = f"{shares.num_streams:,} videos of {num_frames:,} frames from {family.name}"
        _print(console, title, describe_memory(shares))
        console.print(format_table(shares, frames_per_second=frames_per_second))
        fits = any(item.num_streams >= shares.num_streams for item in shares.formats)
        return ExitCode.DONE if fits and works else ExitCode.USER_ERROR
    plan = plan_capacity(config, family, num_frames=num_frames)
    rows = describe_plan(plan, frames_per_second=frames_per_second)
    _print(console, f"videos of {plan.num_frames:,} frames from {family.name}", rows)
    return ExitCode.DONE if plan.fits and works else ExitCode.USER_ERROR


def _print(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=title, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
