"""Writing a comparison at equal bytes: Markdown, JSON and a plot, of whatever videos there are."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from qvg_engine.quality.equal_bytes.looks import KINDS
from qvg_engine.quality.equal_bytes.plots import draw_plot
from qvg_engine.quality.equal_bytes.settings import EXACT
from qvg_engine.quality.equal_bytes.summary import (
    LEAST_PAIRS,
    BudgetRow,
    EqualBytesTable,
    summarise,
)
from qvg_engine.quality.equal_bytes.videos import Study
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.markdown import section
from qvg_engine.quality.plots import can_plot
from qvg_engine.quality.sheets import Sheet
from qvg_engine.quality.table.bootstrap import Interval

REPORT_NAME = "equal_bytes"


def write_report(study: Study, folder: Path) -> EqualBytesTable:
    """Write `equal_bytes.md`, `equal_bytes.json` and, with matplotlib, a plot; returns the table.

    Raises OutputError for a folder that cannot be written.
    """
    table = summarise(study)
    if can_plot():
        write_whole(folder / f"{REPORT_NAME}.png", draw_plot(table))
    content = msgspec.json.format(msgspec.json.encode(table), indent=1)
    write_whole(folder / f"{REPORT_NAME}.json", content + b"\n")
    write_whole(folder / f"{REPORT_NAME}.md", to_markdown(table, has_plot=can_plot()).encode())
    return table


def to_markdown(table: EqualBytesTable, *, has_plot: bool) -> str:
    """The whole report."""
    settings = table.settings
    lines = [
        "# A longer window at equal bytes",
        f"{settings.num_prompts} prompts, seeds of each: {settings.num_seeds}; "
        f"{settings.num_frames} frames a video ({settings.dtype}). Windows are in latent frames "
        "and count the chunk itself. Differences are paired by prompt and seed, intervals are of "
        "95 %.",
        *(answer_line(row, table) for row in table.budgets),
        claim(table),
    ]
    if has_plot:
        lines.append(f"![{REPORT_NAME}.png]({REPORT_NAME}.png)")
    lines += map(section, sheets(table))
    return "\n\n".join(lines) + "\n"


def answer_line(row: BudgetRow, table: EqualBytesTable) -> str:
    """One sentence of what a budget shows."""
    first = row.differences[0]
    windows = f"`{first.ours}` against `{first.theirs}`"
    if row.verdict == "unequal bytes":
        return f"{windows}: **unequal bytes**, so nothing is compared."
    if row.verdict == "too few looks":
        return (
            f"{windows}: **too few looks**; {first.pairs} pairs of videos have looks that tell the "
            f"windows apart, {LEAST_PAIRS} are needed."
        )
    return (
        f"{windows}: **{row.verdict}**; revisited ground {_interval(first.revisited_db)} dB, less "
        f"other ground {_interval(first.gain_db)} dB, {first.pairs} pairs of videos; frames that "
        f"are as prompted {_percent(first.adherence)} points."
    )


def claim(table: EqualBytesTable) -> str:
    """Whether the claim may be made."""
    shown = sum(row.verdict == "shown" for row in table.budgets)
    made = "is shown" if table.shown else "is not shown"
    return (
        f"That compression buys memory {made}: budgets that show it are {shown} of "
        f"{len(table.budgets)}. A budget shows it if both intervals lie above 0."
    )


def sheets(table: EqualBytesTable) -> Iterator[Sheet]:
    """All tables, in order."""
    yield _bytes_sheet(table)
    yield _kinds_sheet(table)
    for row in table.budgets:
        yield _difference_sheet(row)


def _bytes_sheet(table: EqualBytesTable) -> Sheet:
    rows = []
    for arm in table.arms:
        has_bytes = arm.num_bytes > 0
        rows.append(
            (
                arm.name,
                str(arm.num_videos),
                f"{arm.num_bytes:,.0f}" if has_bytes else "",
                f"{arm.codebook_bytes:,.0f}" if has_bytes else "",
                f"{arm.kv_ratio:.2f}" if has_bytes else "",
                str(arm.num_looks),
                "" if arm.lap is None else f"{arm.lap:.0f}",
                _interval(arm.revisited_db, sign=""),
                _interval(arm.gain_db),
                _percent(arm.adherence, sign=""),
            )
        )
    return Sheet(
        title="Videos by format and window",
        headings=(
            "format, window",
            "videos",
            "bytes of KV",
            "beside the pages",
            "kv_ratio",
            "looks",
            "mean lap",
            "revisited, dB",
            "less other ground, dB",
            "all four found",
        ),
        rows=tuple(rows),
        note=(
            "Bytes are a stream's, as its engine counted them at the step of peak page use. All "
            "looks are in here, whatever their age; a lap is in latent frames. Real clips went "
            "through the VAE: what a perfect memory would get."
        ),
    )


def _kinds_sheet(table: EqualBytesTable) -> Sheet:
    rows = []
    for row in table.budgets:
        total = sum(row.kinds.values())
        shares = [f"{row.kinds[kind] / total:.0%}" if total else "" for kind in KINDS]
        first = row.differences[0]
        rows.append((f"{first.ours} and {first.theirs}", str(total), *shares))
    return Sheet(
        title="What the two windows see of the ground that comes back",
        headings=("compared", "looks", *KINDS),
        rows=tuple(rows),
        note=(
            "Told apart: the ground had left the shorter window before it came back, and the "
            "longer one still saw the whole first sight: these looks give the answer. "
            "Within both, beyond both: both windows see all of it, or nothing. In between: any "
            "other."
        ),
    )


def _difference_sheet(row: BudgetRow) -> Sheet:
    return Sheet(
        title=f"The bytes of {row.budget.short} latent frames in {EXACT}: {row.verdict}",
        headings=(
            "what differs",
            "compared",
            "pairs",
            "revisited, dB",
            "less other ground, dB",
            "all four found, points",
        ),
        rows=tuple(
            (
                item.name,
                f"{item.ours} - {item.theirs}",
                str(item.pairs),
                _interval(item.revisited_db),
                _interval(item.gain_db),
                _percent(item.adherence),
            )
            for item in row.differences
        ),
        note="Over the looks that tell the windows apart, but for the last row.",
    )


def _interval(found: Interval | None, *, sign: str = "+", scale: float = 1.0) -> str:
    if found is None:
        return ""
    value, low, high = (
        f"{scale * part:{sign}.1f}" for part in (found.value, found.low, found.high)
    )
    return value if found.low == found.high else f"{value} ({low} to {high})"


def _percent(found: Interval | None, *, sign: str = "+") -> str:
    return _interval(found, sign=sign, scale=100.0)
