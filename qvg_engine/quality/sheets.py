"""The figures of a report as tables of text, for the terminal and for Markdown alike."""

from collections.abc import Iterator, Sequence
from statistics import mean, stdev

import msgspec

from qvg_engine.quality.figures import (
    BenchReport,
    FormatErrors,
    FramePsnr,
    Margin,
    MemoryCurve,
    decibels,
)

PAPER_KEY_GAIN, PAPER_VALUE_GAIN = 6.9, 2.6
"""What Quant VideoGen's authors report for smoothing, in squared error with 2 bits."""
MARGIN_BAR_DB = 6.0
"""What `q2` shall be better than `qvg` by, in K and in V."""

_SHOWN_SECONDS = (10.0, 60.0, 600.0)


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """A table: its title, headings, rows of as many cells, and what to know of it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def make_sheets(report: BenchReport) -> tuple[Sheet, ...]:
    """All tables of a report, in order."""
    memory = tuple(_memory_sheets(report.memory))
    return (*_error_sheets(report.errors), *_margin_sheet(report.margins), _psnr(report), *memory)


def describe(report: BenchReport) -> str:
    """One line of what was measured on what."""
    fitted = "all tokens they serve" if report.fit_on == "all" else "the first chunk"
    layers = ", ".join(map(str, report.layers))
    return (
        f"{report.model}, {len(report.prompts)} videos of {report.num_frames} frames "
        f"({report.captured_tokens:,} tokens), layers {layers}, seed {report.seed}; "
        f"a codebook for K and one for V of each layer of each video, fitted to {fitted}"
    )


def _error_sheets(errors: Sequence[FormatErrors]) -> Iterator[Sheet]:
    for centroids in sorted({item.centroids for item in errors} - {0}) or [0]:
        shown = [item for item in errors if item.centroids in (0, centroids)]
        shown.sort(key=lambda item: item.key_error + item.value_error)
        yield Sheet(
            title=f"Errors of K and V, {centroids} centroids a stage",
            headings=(
                "format",
                "bits",
                "+ codebook",
                "error of K",
                "error of V",
                "K, dB",
                "V, dB",
                "error of attention",
                "gain of smoothing, K",
                "V",
            ),
            rows=tuple(map(_error_row, shown)),
            note=(
                "Errors of K and V are squared, that of attention is not; all are relative. The "
                "gain of smoothing is the squared error without centroids over that with them; "
                f"the paper reports {PAPER_KEY_GAIN}x for K and {PAPER_VALUE_GAIN}x for V."
            ),
        )


def _error_row(item: FormatErrors) -> tuple[str, ...]:
    return (
        item.name,
        f"{item.bits:.5g}",
        f"{item.codebook_bits:.3f}" if item.codebook_bits else "",
        f"{item.key_error:.2g}",
        f"{item.value_error:.2g}",
        f"{decibels(item.key_error):.1f}",
        f"{decibels(item.value_error):.1f}",
        f"{item.attention_error:.2g}",
        _times(item.key_smoothing_gain),
        _times(item.value_smoothing_gain),
    )


def _margin_sheet(margins: Sequence[Margin]) -> tuple[Sheet, ...]:
    if not margins:
        return ()
    met = all(min(item.key_db, item.value_db) >= MARGIN_BAR_DB for item in margins)
    return (
        Sheet(
            title="q2 against qvg: how much less squared error",
            headings=("centroids", "bits of both", "K", "V", "K, worst layer", "V, worst layer"),
            rows=tuple(
                (
                    str(item.centroids),
                    f"{item.bits_q2:.5g} and {item.bits_qvg:.5g}",
                    *(
                        f"{value:.1f} dB"
                        for value in (
                            item.key_db,
                            item.value_db,
                            item.least_key_db,
                            item.least_value_db,
                        )
                    ),
                )
                for item in margins
            ),
            note=f"{MARGIN_BAR_DB:g} dB in K and V are asked for: {'met' if met else 'NOT met'}.",
        ),
    )


def _psnr(report: BenchReport) -> Sheet:
    count = len(report.psnr[0].chunks)
    num_videos = len(report.psnr[0].videos)
    return Sheet(
        title=f"PSNR of frames against bf16 pages, dB, {num_videos} videos",
        headings=(
            "format",
            "centroids",
            *(f"chunk {index + 1}" for index in range(1, count + 1)),
        ),
        rows=tuple(
            (item.name, _centroids(item), *map(_with_error, zip(*item.videos, strict=True)))
            for item in report.psnr
        ),
        note=(
            "Through the engine, as it fits and keeps codebooks. Chunk 2 is the first that reads "
            "the cache. Mean over videos and its standard error."
        ),
    )


def _centroids(item: FramePsnr) -> str:
    if not item.centroids:
        return ""
    return f"{item.centroids}{', by default' if item.own_budget else ''}"


def _with_error(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "equal" if not known else f"{len(values) - len(known)} equal"
    if len(known) == 1:
        return f"{known[0]:.1f}"
    return f"{mean(known):.1f} ± {stdev(known) / len(known) ** 0.5:.1f}"


def _memory_sheets(curves: Sequence[MemoryCurve]) -> Iterator[Sheet]:
    for model in dict.fromkeys(curve.model for curve in curves):
        shown = [curve for curve in curves if curve.model == model]
        exact = {curve.window_frames: curve for curve in shown if curve.name == "bf16"}
        yield Sheet(
            title=f"KV-cache of one stream, MiB, {model}",
            headings=(
                "format",
                "sees",
                *(f"{seconds:g} s" for seconds in _SHOWN_SECONDS),
                "of bf16",
            ),
            rows=tuple(_memory_row(curve, exact[curve.window_frames]) for curve in shown),
            note="Pages at their peak; codebooks and refinements that are reserved by default.",
        )


def _memory_row(curve: MemoryCurve, exact: MemoryCurve) -> tuple[str, ...]:
    places = [curve.seconds.index(seconds) for seconds in _SHOWN_SECONDS]
    last = places[-1]
    return (
        curve.name,
        "everything" if curve.window_frames is None else f"{curve.window_frames} latent frames",
        *(f"{curve.total_bytes[place] / 2**20:,.1f}" for place in places),
        f"1/{exact.total_bytes[last] / curve.total_bytes[last]:.2f}",
    )


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"
