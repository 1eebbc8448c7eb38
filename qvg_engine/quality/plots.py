"""Plots of a report as PNG, by matplotlib, which is an optional extra."""

import importlib.util
import io
from typing import Any

from qvg_engine.block_manager.format import FORMATS
from qvg_engine.quality.figures import BenchReport, FormatErrors, FramePsnr, MemoryCurve

HOW_TO_INSTALL = "plots were left out: they need matplotlib (pip install 'qvg-engine[plots]')"

_COLOURS = {
    "bf16": "#000000",
    "q4": "#0072b2",
    "qvg-pro": "#e69f00",
    "q2": "#009e73",
    "qvg": "#d55e00",
    "q1": "#cc79a7",
    "rtn2-searched": "#999999",
    "rtn2": "#666666",
    "dense": "#56b4e9",
}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_plots(report: BenchReport) -> dict[str, bytes]:
    """PNG files by their names."""
    return {
        "error_bits.png": _errors(report.errors),
        "psnr.png": _psnr(report.psnr),
        "memory.png": _memory(report.memory),
    }


def make_figure(columns: int, *, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, list(axes)


def to_png(figure: Any) -> bytes:
    """The file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def _errors(errors: tuple[FormatErrors, ...]) -> bytes:
    figure, axes = make_figure(3, width=12, height=4.4)
    names = list(dict.fromkeys(item.name for item in errors))
    kinds = (
        ("key_error", "squared error of K, relative"),
        ("value_error", "squared error of V, relative"),
        ("attention_error", "error of attention's output, relative"),
    )
    for axis, (field, title) in zip(axes, kinds, strict=True):
        for name in names:
            shown = [item for item in errors if item.name == name and getattr(item, field) > 0]
            shown.sort(key=lambda item: item.centroids)
            if not shown:
                continue
            bits = [item.bits + item.codebook_bits for item in shown]
            axis.plot(bits, [getattr(item, field) for item in shown], "o-", color=_colour(name))
            for item, at in zip(shown, bits, strict=True):
                if item.centroids:
                    axis.annotate(
                        str(item.centroids),
                        (at, getattr(item, field)),
                        xytext=(4, 4),
                        textcoords="offset points",
                        fontsize=7,
                        color=_colour(name),
                    )
        axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("bits an element, codebooks included")
    lines = [axes[0].plot([], [], "o-", color=_colour(name))[0] for name in names]
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
    return to_png(figure)


def _psnr(figures: tuple[FramePsnr, ...]) -> bytes:
    groups = [[item for item in figures if item.own_budget is own] for own in (True, False)]
    groups = [group for group in groups if group]
    figure, axes = make_figure(len(groups), width=5.5 * len(groups), height=4.2)
    for axis, group in zip(axes, groups, strict=True):
        for item in group:
            chunks = [index for index, value in enumerate(item.chunks) if value is not None]
            axis.plot(
                [index + 2 for index in chunks],
                [item.chunks[index] for index in chunks],
                "o-",
                color=_colour(item.name),
                label=f"{item.name} ({item.centroids})" if item.centroids else item.name,
            )
        own = group[0].own_budget
        kind = "codebooks by default" if own else "as many centroids for all"
        axis.set_title(f"PSNR against bf16 pages, {kind}", fontsize=10)
        axis.set_xlabel("chunk (the first reads no cache)")
        axis.set_ylabel("dB")
        axis.set_xticks(range(2, 2 + len(group[0].chunks)))
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return to_png(figure)


def _memory(curves: tuple[MemoryCurve, ...]) -> bytes:
    """Of the engine's own formats; equal curves are drawn as a thin line on a wide one."""
    curves = tuple(curve for curve in curves if curve.name in FORMATS)
    models = list(dict.fromkeys(curve.model for curve in curves))
    names = list(dict.fromkeys(curve.name for curve in curves))
    figure, axes = make_figure(len(models), width=5.8 * len(models), height=4.6)
    for axis, model in zip(axes, models, strict=True):
        windows = {c.window_frames for c in curves if c.model == model} - {None}
        for curve in curves:
            if curve.model != model:
                continue
            axis.plot(
                curve.seconds,
                [count / 2**20 for count in curve.total_bytes],
                "-" if curve.window_frames is None else "--",
                color=_colour(curve.name),
                linewidth=_width(curve.name),
                zorder=4 - _width(curve.name),
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(
            [1, 5, 10, 60, 600], labels=["1 s", "5 s", "10 s", "1 min", "10 min"], minor=False
        )
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.7g}")
        window = ", ".join(map(str, windows))
        axis.set_title(f"{model}: full history, and (dashed) {window} latent frames", fontsize=9)
        axis.set_xlabel("length of the video")
        axis.set_ylabel("KV-cache of one stream, MiB")
    lines = [
        axes[0].plot([], [], "-", color=_colour(name), linewidth=_width(name))[0] for name in names
    ]
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
    return to_png(figure)


def _width(name: str) -> float:
    return 3.5 if name == "qvg" else 1.5


def _colour(name: str) -> str:
    return _COLOURS.get(name, "#444444")
