"""The plot of a comparison at equal bytes, by matplotlib."""

from typing import Any

from qvg_engine.quality.equal_bytes.settings import EXACT
from qvg_engine.quality.equal_bytes.summary import EqualBytesTable
from qvg_engine.quality.plots import make_figure, to_png
from qvg_engine.quality.table.bootstrap import Interval

_MARKS = "os^vDP"


def draw_plot(table: EqualBytesTable) -> bytes:
    """Memory against bytes and against the window, and the differences of every budget."""
    figure, axes = make_figure(3, width=17, height=4.6)
    _arms(axes[0], table, by_bytes=True)
    _arms(axes[1], table, by_bytes=False)
    _differences(axes[2], table)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=8, frameon=False)
    if axes[2].get_legend_handles_labels()[0]:
        axes[2].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return to_png(figure)


def _arms(axis: Any, table: EqualBytesTable, *, by_bytes: bool) -> None:
    """How much nearer than other ground revisited ground is, for both formats."""
    for place, name in enumerate((EXACT, table.settings.kv_format)):
        points = [
            (row.num_bytes / 2**20 if by_bytes else int(row.name.split(", ")[1]), row.gain_db)
            for row in table.arms
            if row.name.startswith(f"{name}, ") and row.gain_db is not None
        ]
        for at, (x, found) in enumerate(sorted(points, key=lambda point: point[0])):
            label = f"{name} pages" if at == 0 else None
            _bar(axis, x, found, mark=_MARKS[place], colour=f"C{place}", label=label)
    axis.axhline(0, color="#888888", linewidth=0.8)
    axis.set_title("revisited less other ground, all looks, dB", fontsize=10)
    axis.set_xlabel("KV-cache of a stream, MiB" if by_bytes else "window, latent frames")


def _differences(axis: Any, table: EqualBytesTable) -> None:
    """Differences of the same, over the looks that tell the windows apart unless they say all."""
    names = [item.name for item in table.budgets[0].differences]
    for place, name in enumerate(names):
        for index, row in enumerate(table.budgets):
            found = row.differences[place].gain_db
            if found is not None:
                x = index + 0.13 * (place - (len(names) - 1) / 2)
                label = name if index == 0 else None
                _bar(axis, x, found, mark=_MARKS[place], colour=f"C{place}", label=label)
    axis.axhline(0, color="#888888", linewidth=0.8)
    labels = [f"{row.budget.long} against {row.budget.short}" for row in table.budgets]
    axis.set_xticks(range(len(labels)), labels=labels)
    axis.set_xlabel("windows in latent frames")
    axis.set_title("the same, differences, dB", fontsize=10)


def _bar(
    axis: Any, x: float, found: Interval, *, mark: str, colour: str, label: str | None
) -> None:
    below, above = max(found.value - found.low, 0.0), max(found.high - found.value, 0.0)
    axis.errorbar(
        x, found.value, yerr=[[below], [above]], fmt=mark, color=colour, label=label, capsize=3
    )
