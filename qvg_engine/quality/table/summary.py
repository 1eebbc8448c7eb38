"""A table's figures, put together from the parts that are there."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.contenders.registry import contender
from qvg_engine.quality.memory import memory_curve, shape_of
from qvg_engine.quality.table.adherence import adherence_report
from qvg_engine.quality.table.bootstrap import (
    Interval,
    difference_interval,
    mean_interval,
)
from qvg_engine.quality.table.error_rows import ErrorRow, error_rows
from qvg_engine.quality.table.frame_figures import RunFigures
from qvg_engine.quality.table.kernel_times import TimeFigures
from qvg_engine.quality.table.part_names import PartNames
from qvg_engine.quality.table.parts import Parts
from qvg_engine.quality.table.settings import TableSettings
from qvg_engine.version import __version__

RATIO_SECONDS = 60.0
"""The length of the stream whose cache `RatioRow` is about."""


class RatioRow(msgspec.Struct, frozen=True, kw_only=True):
    """How much smaller than in bf16 one stream's cache is, codebooks and padding counted.

    With the engine's own settings, for `RATIO_SECONDS` of video: with the model's window, and with
    the full history.
    """

    name: str
    windowed: float
    full_history: float


class WindowRow(msgspec.Struct, frozen=True, kw_only=True):
    """Frames of a contender's first windows against those of bf16 pages.

    `num_videos` have been compared. `chunk_psnr`: of each chunk; `psnr` in dB: of all frames of a
    window together; `gain_db`: that less the baseline's, on the same videos.
    """

    name: str
    simulated: bool
    num_videos: int
    chunk_psnr: tuple[Interval, ...]
    psnr: Interval
    ssim: Interval
    gain_db: Interval | None


class ClipRow(msgspec.Struct, frozen=True, kw_only=True):
    """Whole clips against those of bf16 pages: `psnr` of all frames, and the mean by chunk."""

    name: str
    is_control: bool
    num_videos: int
    psnr: Interval
    chunk_psnr: tuple[float, ...]


class TimeRow(msgspec.Struct, frozen=True, kw_only=True):
    """The times of a contender's kernels."""

    name: str
    centroids: int
    figures: TimeFigures


class QualityTable(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known. `layers` are those captured; `samples` frames by contender."""

    version: str
    weights: str
    settings: TableSettings
    layers: tuple[int, ...]
    errors: tuple[ErrorRow, ...]
    ratios: tuple[RatioRow, ...]
    times: tuple[TimeRow, ...]
    windows: tuple[WindowRow, ...]
    clips: tuple[ClipRow, ...]
    adherence: dict[str, Any] | None
    samples: dict[str, RunFigures]


def summarise(names: PartNames, parts: Parts, family: ModelFamily) -> QualityTable:
    """The table, as far as its parts have been measured."""
    settings = names.settings
    windows = _window_runs(names, parts)
    return QualityTable(
        version=__version__,
        weights=names.weights,
        settings=settings,
        layers=names.layers,
        errors=tuple(error_rows(names, parts)),
        ratios=tuple(_ratio_rows(settings.contenders, family)),
        times=tuple(_time_rows(names, parts)),
        windows=tuple(_window_rows(windows, settings)),
        clips=tuple(_clip_rows(names, parts)),
        adherence=adherence_report(names, parts),
        samples={name: runs[0] for name, runs in windows.items() if 0 in runs},
    )


def _ratio_rows(contenders: Sequence[str], family: ModelFamily) -> Iterable[RatioRow]:
    shape = shape_of(family)

    def num_bytes(name: str, *, windowed: bool) -> int:
        item = contender(name)
        assert isinstance(item, FormatContender)
        seconds = (RATIO_SECONDS,)
        curve = memory_curve(shape, item.page_format, windowed=windowed, seconds=seconds)
        return curve.total_bytes[0]

    for name in contenders:
        if isinstance(contender(name), FormatContender):
            windowed, full = (
                num_bytes("bf16", windowed=windowed) / num_bytes(name, windowed=windowed)
                for windowed in (True, False)
            )
            yield RatioRow(name=name, windowed=windowed, full_history=full)


def _time_rows(names: PartNames, parts: Parts) -> Iterable[TimeRow]:
    for centroids in names.settings.centroids:
        for name in names.settings.contenders:
            figures = parts.read(names.times(name, centroids), TimeFigures)
            if figures is not None:
                yield TimeRow(name=name, centroids=centroids, figures=figures)


def _window_runs(names: PartNames, parts: Parts) -> dict[str, dict[int, RunFigures]]:
    """By contender and number of the seed."""
    found: dict[str, dict[int, RunFigures]] = {}
    for name in names.compared:
        for index in range(names.settings.num_seeds):
            run = parts.read(names.window(name, index), RunFigures)
            if run is not None:
                found.setdefault(name, {})[index] = run
    return found


def _window_rows(
    windows: dict[str, dict[int, RunFigures]], settings: TableSettings
) -> Iterable[WindowRow]:
    baseline = windows.get(settings.baseline, {})
    for name, runs in windows.items():
        whole = _by_prompt(runs, runs)
        shared = [index for index in runs if index in baseline]
        gain = None
        if shared and name != settings.baseline:
            ours, theirs = _by_prompt(runs, shared), _by_prompt(baseline, shared)
            gain = difference_interval(ours, theirs, seed=settings.seed)
        num_chunks = len(next(iter(runs.values())).videos[0].psnr)
        yield WindowRow(
            name=name,
            simulated=not isinstance(contender(name), FormatContender),
            num_videos=sum(len(run.videos) for run in runs.values()),
            chunk_psnr=tuple(
                mean_interval(_by_prompt(runs, runs, chunk=chunk), seed=settings.seed)
                for chunk in range(num_chunks)
            ),
            psnr=mean_interval(whole, seed=settings.seed),
            ssim=mean_interval(_ssim_by_prompt(runs), seed=settings.seed),
            gain_db=gain,
        )


def _by_prompt(
    runs: dict[int, RunFigures], indices: Iterable[int], *, chunk: int | None = None
) -> list[list[float]]:
    """PSNR of the windows, or of one chunk of them: a list of seeds for each prompt."""
    chosen = [runs[index] for index in indices]
    return [
        [
            run.videos[prompt].whole_psnr if chunk is None else run.videos[prompt].psnr[chunk]
            for run in chosen
        ]
        for prompt in range(len(chosen[0].videos))
    ]


def _ssim_by_prompt(runs: dict[int, RunFigures]) -> list[list[float]]:
    """Mean SSIM of the windows' chunks: a list of seeds for each prompt."""
    chosen = list(runs.values())
    return [
        [sum(run.videos[prompt].ssim) / len(run.videos[prompt].ssim) for run in chosen]
        for prompt in range(len(chosen[0].videos))
    ]


def _clip_rows(names: PartNames, parts: Parts) -> Iterable[ClipRow]:
    for name in names.clips:
        run = parts.read(names.clip(name), RunFigures)
        if run is None:
            continue
        columns = zip(*(video.psnr for video in run.videos), strict=True)
        yield ClipRow(
            name=name,
            is_control=name in names.controls,
            num_videos=len(run.videos),
            psnr=mean_interval(
                [[video.whole_psnr] for video in run.videos], seed=names.settings.seed
            ),
            chunk_psnr=tuple(sum(column) / len(column) for column in columns),
        )
