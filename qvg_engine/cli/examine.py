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
from qvg_engine.cli.plan_text import describe_plan
from qvg_engine.cli.sizes import format_bytes
from qvg_engine.cli.video_family import load_video_family
from qvg_engine.cli.video_length import VideoLength
from qvg_engine.config import EngineConfig
from qvg_engine.plan import plan_capacity


def examine(engine_settings: dict[str, Any], length: VideoLength) -> int:
    """Print the findings; the exit code says whether everything needed is there and fits.

    Raises a QvgError for settings or weights that cannot be used.
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
    config = EngineConfig(**engine_settings)
    family = load_video_family(config)
    _print(console, "attention", describe_attention(config, family))
    assert family.codec is not None, "a family that makes videos has a codec"
    frames_per_second = family.codec.frames_per_second
    plan = plan_capacity(config, family, num_frames=length.count_frames(frames_per_second))
    rows = describe_plan(plan, frames_per_second=frames_per_second)
    _print(console, f"videos of {plan.num_frames:,} frames from {family.name}", rows)
    works = all(check.error is None for check in kernels)
    return ExitCode.DONE if plan.fits and works else ExitCode.USER_ERROR


def _print(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=title, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
