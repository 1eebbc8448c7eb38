"""A report as Markdown."""

from collections.abc import Sequence

from qvg_engine.quality.figures import BenchReport
from qvg_engine.quality.sheets import Sheet, describe, make_sheets


def to_markdown(report: BenchReport, *, images: Sequence[str] = ()) -> str:
    """The whole report; `images` are names of files beside it."""
    parts = ["# Quality of the page formats", describe(report) + "."]
    parts += [f"![{name}]({name})" for name in images]
    parts += [section(sheet) for sheet in make_sheets(report)]
    return "\n\n".join(parts) + "\n"


def section(sheet: Sheet) -> str:
    """One table under its title."""
    lines = [f"## {sheet.title}", ""]
    lines += [_line(sheet.headings), _line(["---", *(["---:"] * (len(sheet.headings) - 1))])]
    lines += [_line((f"`{row[0]}`", *row[1:])) for row in sheet.rows]
    if sheet.note:
        lines += ["", sheet.note]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
