"""Writing a quality table: Markdown, JSON and plots, of whatever parts there are."""

from pathlib import Path

import msgspec

from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.plots import can_plot
from qvg_engine.quality.table.frame_figures import last_frames
from qvg_engine.quality.table.kept_frames import read_frames
from qvg_engine.quality.table.part_names import EXACT, PartNames
from qvg_engine.quality.table.parts import Parts
from qvg_engine.quality.table.plots import draw_plots
from qvg_engine.quality.table.sheets import to_markdown
from qvg_engine.quality.table.summary import QualityTable, summarise

REPORT_NAME = "quality"


def write_report(
    names: PartNames,
    parts: Parts,
    family: ModelFamily,
    folder: Path,
    *,
    failures: dict[str, str] | None = None,
) -> QualityTable:
    """Write `quality.md`, `quality.json` and, with matplotlib, plots; returns the table.

    Raises OutputError for a folder that cannot be written.
    """
    table = summarise(names, parts, family)
    plots: dict[str, bytes] = {}
    if can_plot():
        kept = read_frames(parts, names.window(EXACT, 0))
        plots = draw_plots(table, None if kept is None else last_frames(kept))
    for name, content in plots.items():
        write_whole(folder / name, content)
    without_samples = msgspec.structs.replace(table, samples={})
    content = msgspec.json.format(msgspec.json.encode(without_samples), indent=1)
    write_whole(folder / f"{REPORT_NAME}.json", content + b"\n")
    text = to_markdown(table, images=list(plots), failures=failures)
    write_whole(folder / f"{REPORT_NAME}.md", text.encode())
    return table
