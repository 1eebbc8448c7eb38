"""The figures of a run of `qvg-engine bench`, as its JSON file has them.

Errors of K and V are squared and relative: the energy of the difference over that of the rows.
The error of attention's output is the square root of such a ratio.
"""

import math

import msgspec


class BookErrors(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one format on one layer of one video.

    `key_error`, `value_error`, `attention_error`: see `format_errors.py`; the `_unsmoothed` ones
    are those of the same rounding without centroids, None where the format has no centroids.
    """

    video: int
    layer: int
    key_error: float
    value_error: float
    attention_error: float
    key_error_unsmoothed: float | None
    value_error_unsmoothed: float | None


class FormatErrors(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one format: means over `books`, one for every layer of every video.

    `bits` an element are those of codes, scales and ids; `codebook_bits` come on top. Centroids
    are those of a stage, 0 for none. A smoothing gain is the mean error without centroids over
    that with centroids.
    """

    name: str
    centroids: int
    bits: float
    codebook_bits: float
    key_error: float
    value_error: float
    attention_error: float
    key_smoothing_gain: float | None
    value_smoothing_gain: float | None
    books: tuple[BookErrors, ...]


class EightBitErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of attention's output over pages of a format, relative to exact attention's norm.

    `format_error`: of the format; `total_error`: of the format with 8-bit attention; `added_error`:
    of 8-bit attention, against attention over the same pages, and the same with weights and values
    in fp16 (`added_error_fp16`).
    """

    name: str
    layer: int
    format_error: float
    total_error: float
    added_error: float
    added_error_fp16: float


class Margin(msgspec.Struct, frozen=True, kw_only=True):
    """By how many dB `q2` has less squared error than `qvg`, which takes as many bits.

    The least ones are those of the worst layer of a video.
    """

    centroids: int
    bits_q2: float
    bits_qvg: float
    key_db: float
    value_db: float
    least_key_db: float
    least_value_db: float


class FramePsnr(msgspec.Struct, frozen=True, kw_only=True):
    """PSNR in dB of a format's frames against those of `bf16` pages, through the engine.

    `chunks`: of the first chunks that read the cache, in order, the mean over videos (None: no
    pixel differs); `videos` has those of every video. `codebook_rows` is how many rows a codebook
    had; `own_budget` whether the engine's settings chose it.
    """

    name: str
    own_budget: bool
    centroids: int
    codebook_rows: int
    chunks: tuple[float | None, ...]
    videos: tuple[tuple[float | None, ...], ...]


class MemoryCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one stream's resident pages at their peak, by length of the video.

    `codebook_bytes` are those of codebooks and of refinements.
    """

    model: str
    name: str
    window_frames: int | None
    seconds: tuple[float, ...]
    page_bytes: tuple[int, ...]
    codebook_bytes: tuple[int, ...]

    @property
    def total_bytes(self) -> tuple[int, ...]:
        """Pages and what belongs to them."""
        return tuple(map(sum, zip(self.page_bytes, self.codebook_bytes, strict=True)))


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run has measured, and what it measured it on."""

    version: str
    model: str
    prompts: tuple[str, ...]
    seed: int
    num_frames: int
    captured_tokens: int
    layers: tuple[int, ...]
    fit_on: str
    errors: tuple[FormatErrors, ...]
    margins: tuple[Margin, ...]
    psnr: tuple[FramePsnr, ...]
    memory: tuple[MemoryCurve, ...]


def decibels(ratio: float) -> float:
    """A ratio of energies in dB; minus infinity for 0."""
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def margins(errors: tuple[FormatErrors, ...]) -> tuple[Margin, ...]:
    """`q2` against `qvg`, for every number of centroids for which both were measured."""
    by_name = {(item.name, item.centroids): item for item in errors}
    return tuple(
        _margin(item, by_name["q2", item.centroids])
        for item in errors
        if item.name == "qvg" and ("q2", item.centroids) in by_name
    )


def _margin(qvg: FormatErrors, q2: FormatErrors) -> Margin:
    pairs = list(zip(qvg.books, q2.books, strict=True))
    return Margin(
        centroids=q2.centroids,
        bits_q2=q2.bits,
        bits_qvg=qvg.bits,
        key_db=decibels(qvg.key_error / q2.key_error),
        value_db=decibels(qvg.value_error / q2.value_error),
        least_key_db=min(decibels(a.key_error / b.key_error) for a, b in pairs),
        least_value_db=min(decibels(a.value_error / b.value_error) for a, b in pairs),
    )
