"""A quality table as sheets of text, and as Markdown."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from qvg_engine.models.pocket.judge import ATTRIBUTES
from qvg_engine.quality.figures import decibels
from qvg_engine.quality.markdown import section
from qvg_engine.quality.pocket_videos import KEYS
from qvg_engine.quality.sheets import Sheet
from qvg_engine.quality.table.bootstrap import RESAMPLES, Interval
from qvg_engine.quality.table.error_rows import ErrorRow
from qvg_engine.quality.table.settings import NUM_WINDOW_CHUNKS
from qvg_engine.quality.table.summary import RATIO_SECONDS, QualityTable


def to_markdown(
    table: QualityTable, *, images: Sequence[str] = (), failures: dict[str, str] | None = None
) -> str:
    """The whole table; `images` are names of files beside it, `failures` what could not be."""
    settings = table.settings
    intro = (
        f"Model {settings.model} (weights {table.weights[:12]}), version {table.version}, seed "
        f"{settings.seed}. In brackets: 95 % intervals, {RESAMPLES:,} resamples of videos (and of "
        "the layers, or of the seeds, of each)."
    )
    parts = ["# Quality of the contenders", intro]
    parts += [f"![{name}]({name})" for name in images]
    parts += [section(sheet) for sheet in make_sheets(table)]
    if failures:
        lines = [f"* `{name}`: {why}" for name, why in failures.items()]
        parts.append("\n".join(["## Could not be measured", "", *lines]))
    return "\n\n".join(parts) + "\n"


def make_sheets(table: QualityTable) -> tuple[Sheet, ...]:
    """All sheets for which there are figures, in order."""
    return (
        *_error_sheets(table),
        *_layer_sheets(table),
        *_ratio_sheet(table),
        *_time_sheets(table),
        *_window_sheet(table),
        *_clip_sheet(table),
        *_adherence_sheet(table.adherence),
    )


def _error_sheets(table: QualityTable) -> Iterator[Sheet]:
    baseline, settings = table.settings.baseline, table.settings
    for centroids in table.settings.centroids:
        rows = sorted(_of(table, centroids), key=lambda row: row.total_bits)
        if not rows:
            continue
        expected = settings.num_captures * len(table.layers)
        note = (
            f"{settings.num_captures} captures of {settings.capture_frames:,} frames "
            f"({min(row.num_tokens for row in rows):,} tokens), layers "
            f"{', '.join(map(str, table.layers))}; one codebook for K and one for V of each layer "
            "of each capture, fitted to all its tokens, over which alone its bits are spread. "
            "Bytes: K and V of all these layers. Errors of K and V are squared, that of "
            "attention's output (teacher-forced, after RoPE, with the queries of one chunk in "
            f"{settings.attend_every}) is not; all are relative. Gains are over `{baseline}`, on "
            "the same layers and captures; the last is a factor, below 1 is better."
        )
        partial = [row.name for row in rows if row.num_books < expected]
        if partial:
            note += f" Not all {expected} layers of captures yet: {', '.join(partial)}."
        yield Sheet(
            title=f"Errors, {centroids} centroids a stage",
            headings=(
                "contender",
                "bits",
                "+ shared",
                "all bits",
                "bytes a token",
                "error of K",
                "error of V",
                "error of attention",
                "gain of K, dB",
                "gain of V, dB",
                "attention, times",
            ),
            rows=tuple(map(_error_row, rows)),
            note=note,
        )


def _error_row(row: ErrorRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.bits:.4f}",
        f"{row.shared_bits:.4f}" if row.shared_bits else "",
        f"{row.total_bits:.3f}",
        f"{row.bytes_per_token:,.0f}",
        _error(row.keys),
        _error(row.values),
        _error(row.attention),
        _gain(row.key_ratio),
        _gain(row.value_ratio),
        _interval(row.attention_ratio, ".2f"),
    )


def _layer_sheets(table: QualityTable) -> Iterator[Sheet]:
    for centroids in table.settings.centroids:
        rows = sorted(_of(table, centroids), key=lambda row: row.total_bits)
        if rows and len(table.layers) > 1:
            yield Sheet(
                title=f"Error of attention's output by layer, {centroids} centroids a stage",
                headings=("contender", *(f"layer {layer}" for layer in table.layers)),
                rows=tuple(
                    (
                        row.name,
                        *(
                            _known(
                                [x.attention_error for x in row.layers if x.layer == layer], ".3g"
                            )
                            for layer in table.layers
                        ),
                    )
                    for row in rows
                ),
            )


def _ratio_sheet(table: QualityTable) -> Iterator[Sheet]:
    if table.ratios:
        yield Sheet(
            title="Bytes of a stream's cache in the engine, as a part of bf16's",
            headings=("contender", "with the model's window", "full history"),
            rows=tuple(
                (row.name, f"1/{row.windowed:.2f}", f"1/{row.full_history:.2f}")
                for row in table.ratios
            ),
            note=(
                f"A stream of {RATIO_SECONDS:g} s at its peak: pages, padding included, and the "
                "codebooks and refinements that the engine reserves by default."
            ),
        )


def _time_sheets(table: QualityTable) -> Iterator[Sheet]:
    for centroids in table.settings.centroids:
        rows = [row for row in table.times if row.centroids == centroids]
        if rows:
            yield Sheet(
                title=f"Processor time, milliseconds, {centroids} centroids a stage",
                headings=("contender", "encode", "decode", "decode, times", "fit a codebook"),
                rows=tuple(
                    (
                        row.name,
                        f"{row.figures.encode_ms:.2f}",
                        f"{row.figures.decode_ms:.2f}",
                        "" if (ratio := row.figures.decode_ratio) is None else f"{ratio:.2f}",
                        f"{row.figures.fit_ms:.1f}" if row.figures.fit_ms else "",
                    )
                    for row in rows
                ),
                note=(
                    "One thread; K and V of one layer, all heads. Encode and decode (K rotated): "
                    "for 1,000 tokens; times: over that of "
                    f"`{table.settings.baseline}`, taken in turns. A fit: both codebooks, to one "
                    "chunk."
                ),
            )


def _window_sheet(table: QualityTable) -> Iterator[Sheet]:
    if table.windows:
        chunks = range(2, 2 + NUM_WINDOW_CHUNKS)
        yield Sheet(
            title="Frames of the first window against bf16 pages",
            headings=(
                "contender",
                "videos",
                *(f"PSNR, chunk {chunk}" for chunk in chunks),
                "PSNR, dB",
                "SSIM",
                f"over `{table.settings.baseline}`, dB",
            ),
            rows=tuple(
                (
                    f"{row.name} (simulated)" if row.simulated else row.name,
                    str(row.num_videos),
                    *(f"{chunk.value:.1f}" for chunk in row.chunk_psnr),
                    _interval(row.psnr, ".1f"),
                    _interval(row.ssim, ".4f"),
                    _interval(row.gain_db, "+.1f"),
                )
                for row in sorted(table.windows, key=lambda row: -row.psnr.value)
            ),
            note=(
                "The second to the fourth chunk: the first that read the cache. Through the whole "
                "engine, which fits and keeps codebooks as it does by default. Simulated: the rows "
                "of each commit are replaced by what the contender reads back. 100 dB: equal."
            ),
        )


def _clip_sheet(table: QualityTable) -> Iterator[Sheet]:
    if table.clips:
        yield Sheet(
            title="Whole clips against bf16 pages",
            headings=("run", "videos", "PSNR, dB", "first window", "last chunk"),
            rows=tuple(
                (
                    row.name,
                    str(row.num_videos),
                    _interval(row.psnr, ".1f"),
                    _mean(row.chunk_psnr[1 : 1 + NUM_WINDOW_CHUNKS]),
                    f"{row.chunk_psnr[-1]:.1f}",
                )
                for row in table.clips
            ),
            note=(
                f"Clips of {table.settings.clip_frames} frames. Any two runs part ways: the "
                "controls differ from the run that all are compared with in rounding only, by fp32 "
                "pages instead of bf16, and by products of matrices that are batched otherwise. "
                "Late chunks tell of that as much as of a format. First window: mean of its chunks."
            ),
        )


def _adherence_sheet(report: dict[str, Any] | None) -> Iterator[Sheet]:
    if report is None:
        return
    baseline = report["baseline"]
    rows = [
        (name, *(f"{shares[key]:.1%}" for key in KEYS))
        for name, shares in report["formats"].items()
    ]
    rows += [
        (
            f"{name} - {baseline}",
            *(
                "{difference:+.1f} ({low:+.1f} to {high:+.1f})".format(
                    **{part: 100 * value for part, value in found[key].items()}
                )
                for key in KEYS
            ),
        )
        for name, found in report["differences"].items()
    ]
    yield Sheet(
        title="Prompt adherence",
        headings=("contender", *ATTRIBUTES, "all four", "alive", "alive at the end"),
        rows=tuple(rows),
        note=(
            f"{report['num_prompts']} prompts, {report['num_frames']} frames each, every "
            f"{report['every']}th frame judged; differences, in percentage points, are paired by "
            "prompt and seed."
        ),
    )


def _of(table: QualityTable, centroids: int) -> list[ErrorRow]:
    return [row for row in table.errors if row.centroids == centroids]


def _error(found: Interval) -> str:
    return "0" if not found.value else _interval(found, ".2g")


def _gain(ratio: Interval | None) -> str:
    """How many dB below the baseline; nothing for what loses nothing."""
    if ratio is None or ratio.low <= 0:
        return ""
    turned = (-decibels(part) for part in (ratio.value, ratio.high, ratio.low))
    return _interval(Interval(*turned), "+.1f")


def _interval(found: Interval | None, form: str) -> str:
    if found is None or not math.isfinite(found.value):
        return ""
    value, low, high = (format(part, form) for part in (found.value, found.low, found.high))
    return value if low == high else f"{value} ({low} to {high})"


def _known(values: Sequence[float], form: str) -> str:
    return format(values[0], form) if values else ""


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else ""
