"""Plots of a quality table as PNG, by matplotlib."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvg_engine.quality.plots import make_figure, to_png
from qvg_engine.quality.table.error_rows import ErrorRow
from qvg_engine.quality.table.frame_figures import RunFigures
from qvg_engine.quality.table.part_names import EXACT
from qvg_engine.quality.table.settings import NUM_WINDOW_CHUNKS
from qvg_engine.quality.table.summary import ClipRow, QualityTable, WindowRow

_MARKS = "os^vDP*X<>dph8H|"
_LINES = ("-", "--", ":")
_ENLARGE = 3


def draw_plots(table: QualityTable, exact: Sequence[NDArray[np.uint8]] | None) -> dict[str, bytes]:
    """PNG files by their names, of what there are figures for.

    `exact` are the frames of bf16 pages, [H, W, 3] each, that samples are to be shown beside.
    """
    plots: dict[str, bytes] = {}
    for centroids in table.settings.centroids:
        rows = [row for row in table.errors if row.centroids == centroids]
        if rows:
            plots[f"error_bits_c{centroids}.png"] = _error_bits(rows)
            plots[f"error_time_c{centroids}.png"] = _error_time(rows, table)
    if table.windows:
        plots["first_window.png"] = _windows(table.windows)
    if table.clips:
        plots["whole_clips.png"] = _clips(table.clips)
    if table.samples and exact is not None:
        plots["frames.png"] = _frames(table, exact)
    return plots


def _error_bits(rows: Sequence[ErrorRow]) -> bytes:
    """Error against bits, with the contenders that nothing beats joined by a line."""
    kinds: tuple[tuple[str, Callable[[ErrorRow], Any]], ...] = (
        ("squared error of K, relative", lambda row: row.keys),
        ("squared error of V, relative", lambda row: row.values),
        ("error of attention's output, relative", lambda row: row.attention),
    )
    figure, axes = make_figure(3, width=15, height=6.5)
    shown = [row for row in rows if row.total_bits < 16]
    styles = _styles([row.name for row in shown])
    for axis, (title, interval) in zip(axes, kinds, strict=True):
        points = [(row, interval(row)) for row in shown if interval(row).value > 0]
        for row, found in points:
            mark, colour = styles[row.name]
            below, above = found.value - found.low, found.high - found.value
            axis.errorbar(
                row.total_bits,
                found.value,
                yerr=[[max(below, 0)], [max(above, 0)]],
                fmt=mark,
                color=colour,
                markersize=5,
                linewidth=0.8,
            )
        front = _front([(row.total_bits, found.value) for row, found in points])
        axis.plot(*zip(*front, strict=True), color="#bbbbbb", linewidth=1, zorder=0)
        axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("bits an element, with all that tokens share")
    _legend(figure, axes[0], styles, columns=7)
    return to_png(figure)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other has both fewer bits and less error than, by bits."""
    front: list[tuple[float, float]] = []
    for bits, error in sorted(points):
        if not front or error < front[-1][1]:
            front.append((bits, error))
    return front


def _error_time(rows: Sequence[ErrorRow], table: QualityTable) -> bytes:
    """Errors along the videos, of the contenders that pictures show."""
    shown = [row for row in rows if row.name in table.settings.shown]
    chosen = sorted(
        (row for row in shown or rows if row.keys.value > 0), key=lambda row: row.attention.value
    )
    figure, axes = make_figure(3, width=15, height=4.6)
    for place, row in enumerate(chosen):
        line = {"color": f"C{place % 10}", "linestyle": _LINES[place // 10 % len(_LINES)]}
        chunks = range(len(row.key_chunks))
        axes[0].plot(chunks, row.key_chunks, linewidth=1.2, **line)
        axes[1].plot(chunks, row.value_chunks, linewidth=1.2, **line)
        axes[2].plot(row.attended, row.attention_chunks, linewidth=1.2, label=row.name, **line)
    titles = ("squared error of K", "squared error of V", "error of attention's output")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_yscale("log")
        axis.set_title(f"{title}, relative", fontsize=10)
        axis.set_xlabel("chunk of the video")
    if chosen:
        figure.legend(loc="outside lower center", ncols=10, frameon=False, fontsize=8)
    return to_png(figure)


def _windows(rows: Sequence[WindowRow]) -> bytes:
    """PSNR of the first window, the best contender on top."""
    rows = sorted(rows, key=lambda row: row.psnr.value)
    figure, (axis,) = make_figure(1, width=8, height=1.2 + 0.27 * len(rows))
    for place, row in enumerate(rows):
        found = row.psnr
        axis.barh(place, found.value, color="#999999" if row.simulated else "#0072b2", height=0.7)
        axis.plot([found.low, found.high], [place, place], color="#000000", linewidth=1)
    axis.set_yticks(range(len(rows)), labels=[row.name for row in rows], fontsize=8)
    axis.set_xlabel("PSNR against bf16 pages, dB; 95 % interval (grey: simulated)")
    axis.set_title(f"First {NUM_WINDOW_CHUNKS} chunks that read the cache", fontsize=10)
    return to_png(figure)


def _clips(rows: Sequence[ClipRow]) -> bytes:
    """PSNR by chunk along whole clips, with the controls."""
    figure, (axis,) = make_figure(1, width=9, height=4.6)
    for place, row in enumerate(rows):
        axis.plot(
            range(1, 1 + len(row.chunk_psnr)),
            row.chunk_psnr,
            "--" if row.is_control else "-",
            color="#000000" if row.is_control else f"C{place}",
            alpha=0.4 + 0.3 * (place % 3),
            label=row.name,
        )
    axis.set_xlabel("chunk")
    axis.set_ylabel("PSNR against bf16 pages, dB")
    axis.set_title("Whole clips: runs that differ in rounding (dashed) part ways, too", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return to_png(figure)


def _frames(table: QualityTable, exact: Sequence[NDArray[np.uint8]]) -> bytes:
    """The last frames of some videos' first windows: a row each, contenders side by side."""
    from matplotlib.figure import Figure

    by_name = {row.name: row for row in table.windows}
    shown = [name for name in table.samples if name in table.settings.shown]
    order = sorted(shown or table.samples, key=lambda name: -by_name[name].psnr.value)
    columns = [(f"{EXACT} pages", list(exact))]
    columns += [(name, _samples(table.samples[name])) for name in order]
    figure = Figure(figsize=(1.3 * len(columns), 0.3 + 1.3 * len(exact)), layout="constrained")
    axes = figure.subplots(len(exact), len(columns), squeeze=False)
    for place, (name, frames) in enumerate(columns):
        for line, frame in enumerate(frames):
            axis = axes[line][place]
            axis.imshow(np.kron(frame, np.ones((_ENLARGE, _ENLARGE, 1), np.uint8)))
            axis.set_axis_off()
        axes[0][place].set_title(name, fontsize=8)
    return to_png(figure)


def _samples(run: RunFigures) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(frame, np.uint8).reshape(run.sample_shape) for frame in run.samples]


def _styles(names: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """A mark and a colour for each: a colour for every family of names, such as q2 and q2-..."""
    from matplotlib import colormaps

    distinct = list(dict.fromkeys(names))
    families = list(dict.fromkeys(name.split("-")[0] for name in distinct))
    colours = colormaps["tab20" if len(families) > 10 else "tab10"]
    seen: dict[str, int] = {}
    styles = {}
    for name in distinct:
        family = name.split("-")[0]
        place = seen[family] = seen.get(family, -1) + 1
        colour = colours(families.index(family) % colours.N)
        styles[name] = (_MARKS[place % len(_MARKS)], colour)
    return styles


def _legend(figure: Any, axis: Any, styles: dict[str, tuple[str, Any]], columns: int) -> None:
    lines = [
        axis.plot([], [], mark, color=colour, markersize=5)[0] for mark, colour in styles.values()
    ]
    figure.legend(
        lines, list(styles), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
