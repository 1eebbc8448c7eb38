"""What `qvg-engine bench` does around the measurement: check, load, show, write."""

from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from qvg_engine.cli.console import make_console
from qvg_engine.cli.exit_code import ExitCode
from qvg_engine.cli.steps import Steps
from qvg_engine.cli.video_family import load_video_family
from qvg_engine.config import EngineConfig
from qvg_engine.errors import OutputError
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.quality.bench import run_bench
from qvg_engine.quality.figures import BenchReport
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.markdown import to_markdown
from qvg_engine.quality.plots import HOW_TO_INSTALL, can_plot, draw_plots
from qvg_engine.quality.settings import BenchSettings
from qvg_engine.quality.sheets import Sheet, describe, make_sheets
from qvg_engine.quality.text_plot import error_points, text_plot
from qvg_engine.video.writer import require_writable_folder


def measure(
    settings: BenchSettings,
    engine_settings: dict[str, Any],
    *,
    json_path: Path | None,
    output_dir: Path | None,
) -> int:
    """Measure, print, write; returns the exit code. Raises a QvgError for a user's mistake."""
    config = EngineConfig(**engine_settings)
    if json_path is not None:
        if json_path.is_dir():
            raise OutputError(f"--json {json_path} is a folder: name a file")
        require_writable_folder(json_path.parent)
    if output_dir is not None:
        require_writable_folder(output_dir)
    keep_freed_memory()
    console = make_console()
    family = load_video_family(config)
    with Steps(console, line="measuring") as steps:
        report = run_bench(settings, family, config, on_progress=steps.show)
    _print(report, console)
    if json_path is not None:
        content = msgspec.json.format(msgspec.json.encode(report), indent=2)
        write_whole(json_path, content + b"\n")
    if output_dir is not None:
        _write_folder(report, output_dir, console)
    return ExitCode.DONE


def _print(report: BenchReport, console: Console) -> None:
    console.print(describe(report), highlight=False, soft_wrap=True)
    for sheet in make_sheets(report):
        console.print(_table(sheet))
    plot = text_plot(
        error_points(report.errors),
        x_name="bits an element, codebooks included",
        y_name="mean squared error of K and V, relative",
    )
    console.print(plot, markup=False, highlight=False, soft_wrap=True)


def _table(sheet: Sheet) -> Table:
    table = Table(
        title=sheet.title,
        title_justify="left",
        caption=sheet.note,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column(sheet.headings[0], no_wrap=True)
    for heading in sheet.headings[1:]:
        table.add_column(heading, justify="right")
    for row in sheet.rows:
        table.add_row(*row)
    return table


def _write_folder(report: BenchReport, folder: Path, console: Console) -> None:
    plots: dict[str, bytes] = {}
    if can_plot():
        plots = draw_plots(report)
    else:
        console.print(HOW_TO_INSTALL, markup=False, highlight=False, soft_wrap=True)
    for name, content in plots.items():
        write_whole(folder / name, content)
    write_whole(folder / "quality.md", to_markdown(report, images=list(plots)).encode())
    console.print(f"wrote {folder / 'quality.md'}", highlight=False, soft_wrap=True)
