"""What formats by layer are worth: chosen under budgets of bits, predicted, and measured.

    python benchmarks/allocation.py --output reports

calibrates on a short video of the embedded model, measures on it and on a longer one, and writes
`allocation.md` and `allocation.json`.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer
from numpy.typing import NDArray

from qvg_engine import EngineConfig, VideoEngine, VideoRequest, __version__
from qvg_engine.allocation import Allocation
from qvg_engine.block_manager.format import LayerFormats, PageFormat, get_format
from qvg_engine.loading import load_family
from qvg_engine.models.pocket.clips import all_scenes
from qvg_engine.quality.allocate import Choice, allocate
from qvg_engine.quality.calibration import frames_of_chunks
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.chunk_frames import Video, first_chunks, with_room
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.joint_errors import JointErrors
from qvg_engine.quality.kv_choice import KvChoice, choose_formats
from qvg_engine.quality.kv_prices import KvPrices, kv_prices
from qvg_engine.quality.markdown import section
from qvg_engine.quality.probes import Probes, measure_effects, weighted
from qvg_engine.quality.psnr import psnr
from qvg_engine.quality.recorder import record_passes
from qvg_engine.quality.sheets import Sheet

BUDGETS = (1.4, 1.8, 2.3, 3.0)
UNIFORM = ("q1", "q2", "q4")
NUM_CHUNKS = 3
"""Chunks whose frames are compared: the first that read the cache."""

Layers = tuple[LayerFormats, ...]
Floats = NDArray[np.float64]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One way to store K and V.

    `predicted`: the relative error of latents that the calibration foresees; `measured`: that of
    its video, with everything stored. `attention_predicted`, `attention`: the same of attention's
    output, the root of the mean square over layers and passes; `attention_test`: measured on the
    test. `frames`: PSNR of the second to the fourth chunk, mean over videos and its standard error.
    `layers`: the names of formats.
    """

    name: str
    overhead: float
    bits: float
    predicted: float
    measured: float
    attention_predicted: float
    attention: float
    attention_test: float
    frames: tuple[tuple[float, float], ...]
    layers: tuple[tuple[str, str], ...]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What can be had for so many bits.

    `chosen`: by layer. `by_attention`: the same, every layer's attention counted alike. `pair`: the
    best pair of formats for all layers. `uniform_*`: of uniform formats, interpolated between the
    bits of the best ones: attention's error on the test, and PSNR. `per_head`: attention's error on
    the test with formats for every head; `per_head_predicted`: the error of latents then foreseen.
    """

    kv_bits: float
    chosen: Line
    by_attention: Line
    pair: Line
    uniform_attention: float
    uniform_frames: tuple[float, ...]
    per_head: float
    per_head_predicted: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures. `effects`: what K and V of each layer do to the latents, see `probes.py`."""

    version: str
    calibration: str
    test: str
    num_tokens: tuple[int, int]
    videos: int
    effects: tuple[tuple[float, float], ...]
    uniform: tuple[Line, ...]
    budgets: tuple[Budget, ...]


class Frames:
    """Frames of some videos through the engine, against those of `bf16` pages."""

    def __init__(self, num_videos: int, seed: int) -> None:
        scenes = all_scenes()
        picked = np.random.default_rng(seed).choice(len(scenes), num_videos + 2, replace=False)
        self._recorded = [scenes[index].prompt for index in picked[:2]]
        self._prompts = [scenes[index].prompt for index in picked[2:]]
        self._config = EngineConfig(device="cpu", batch_invariant=True)
        self._family = load_family(self._config)
        self._num_frames = frames_of_chunks(self._family, 24)
        self._exact = self._generate(get_format("bf16"), None)

    def record(self, index: int, num_chunks: int) -> tuple[Capture, ...]:
        """The passes of one of two other videos; `bf16` pages."""
        num_frames = frames_of_chunks(self._family, num_chunks)
        return record_passes(
            self._family,
            msgspec.structs.replace(self._config, kv_format="bf16"),
            prompt=self._recorded[index],
            num_frames=num_frames,
            seed=index,
        )

    def probes(self, capture: Capture) -> Probes:
        """Those of a captured video."""
        info = capture.info
        return Probes(
            self._family,
            self._config,
            prompt=info.prompt,
            seed=info.seed,
            num_frames=self._num_frames,
        )

    @property
    def prices(self) -> KvPrices:
        """Prices of a video with a full window."""
        return kv_prices(self._family, self._config, num_frames=self._num_frames)

    def measure(self, allocation: Allocation) -> tuple[tuple[float, float], ...]:
        """Mean PSNR of every chunk, and its standard error."""
        made = self._generate(allocation, allocation.codebook_overhead)
        found = np.array([list(map(psnr, *pair)) for pair in zip(made, self._exact, strict=True)])
        spread = found.std(axis=0, ddof=1) / math.sqrt(len(found))
        return tuple(zip(found.mean(axis=0).tolist(), spread.tolist(), strict=True))

    def _generate(self, kv_format: PageFormat | Allocation, overhead: float | None) -> list[Video]:
        config = msgspec.structs.replace(
            self._config, kv_format=kv_format, codebook_overhead=overhead
        )
        config = with_room(
            config, self._family, num_streams=len(self._prompts), num_frames=self._num_frames
        )
        requests = [
            VideoRequest(
                request_id=str(index), prompt=prompt, num_frames=self._num_frames, seed=index
            )
            for index, prompt in enumerate(self._prompts)
        ]
        engine = VideoEngine(config, family=self._family)
        return first_chunks(engine, requests, first=1, count=NUM_CHUNKS)


class Study:
    """Calibration, test and frames together."""

    def __init__(
        self, calibration: Sequence[Capture], test: Sequence[Capture], frames: Frames
    ) -> None:
        self.prices = frames.prices
        self._frames = frames
        self._calibration = JointErrors(calibration, self.prices)
        self._test = JointErrors(test, self.prices)
        self._probes = frames.probes(calibration[0])
        errors, overhead = self._calibration.errors, self.prices.overheads[-1]
        self.effects = measure_effects(self._probes, self.prices, overhead=overhead)
        self._errors = weighted(errors, self.effects, self.prices, overhead=overhead)
        self._weights = self._errors / errors

    def uniform(self) -> Iterator[Line]:
        """Every named format for all, with every overhead."""
        for overhead in self.prices.overheads:
            for name in UNIFORM:
                pair = LayerFormats(keys=get_format(name), values=get_format(name))
                yield self._line(f"{name}, {overhead}", (pair,) * self.prices.num_layers, overhead)

    def budget(self, kv_bits: float, uniform: Sequence[Line]) -> Budget:
        """All that can be had for so many bits."""
        exact = self.prices.check(kv_bits, name="kv_bits")
        chosen = choose_formats(self.prices, self._errors, exact)
        alike = choose_formats(self.prices, self._calibration.errors, exact)
        overhead = chosen.allocation.codebook_overhead
        assert overhead is not None
        predicted, heads = self._per_head(exact, overhead)
        frames = [[mean for mean, _ in line.frames] for line in uniform]
        return Budget(
            kv_bits=kv_bits,
            chosen=self._chosen("by layer", chosen),
            by_attention=self._chosen("by attention alone", alike),
            pair=self._pair(exact),
            uniform_attention=math.exp(
                _interpolated(uniform, [math.log(line.attention_test) for line in uniform], kv_bits)
            ),
            uniform_frames=tuple(
                -_interpolated(uniform, [-dB for dB in chunk], kv_bits)
                for chunk in zip(*frames, strict=True)
            ),
            per_head=self._test.joint_head_error(heads, overhead),
            per_head_predicted=predicted,
        )

    def _per_head(self, kv_bits: Fraction, overhead: float) -> tuple[float, tuple[int, ...]]:
        """The predicted error, and a choice for every head of every part."""
        prices = self.prices
        place = prices.overheads.index(overhead)
        found = (self._calibration.head_errors * self._weights[..., None])[place]
        parts = [
            [Choice(cost, float(error)) for cost, error in zip(prices.row_bytes, row, strict=True)]
            for row in np.moveaxis(found, -1, -2).reshape(-1, len(prices.candidates))
        ]
        capacity = prices.capacity(kv_bits, overhead) * found.shape[-1]
        chosen = allocate(parts, min(capacity, len(parts) * max(prices.row_bytes)))
        assert chosen is not None
        total = sum(part[index].error for part, index in zip(parts, chosen, strict=True))
        return math.sqrt(total), chosen

    def _pair(self, kv_bits: Fraction) -> Line:
        """The best formats of K and of V, the same in all layers."""
        prices = self.prices
        best: tuple[float, Layers, float] | None = None
        for overhead in prices.overheads:
            for keys in prices.candidates:
                for values in prices.candidates:
                    layers = (LayerFormats(keys=keys, values=values),) * prices.num_layers
                    if prices.bits(layers, overhead) <= kv_bits:
                        found = self._sum(self._errors, layers, overhead), layers, overhead
                        best = min(best or found, found, key=lambda item: item[0])
        assert best is not None
        return self._line("one pair", best[1], best[2])

    def _chosen(self, name: str, choice: KvChoice) -> Line:
        overhead = choice.allocation.codebook_overhead
        assert overhead is not None
        return self._line(name, choice.allocation.layers, overhead)

    def _line(self, name: str, layers: Layers, overhead: float) -> Line:
        allocation = self.prices.allocation(layers, overhead)
        attention = self._sum(self._calibration.errors, layers, overhead)
        return Line(
            name=name,
            overhead=overhead,
            bits=float(self.prices.bits(layers, overhead)),
            predicted=math.sqrt(self._sum(self._errors, layers, overhead)),
            measured=math.sqrt(self._probes.error(allocation)),
            attention_predicted=math.sqrt(attention / self.prices.num_layers),
            attention=self._calibration.joint_error(layers, overhead),
            attention_test=self._test.joint_error(layers, overhead),
            frames=self._frames.measure(allocation),
            layers=tuple((pair.keys.name, pair.values.name) for pair in layers),
        )

    def _sum(self, errors: Floats, layers: Layers, overhead: float) -> float:
        found = errors[self.prices.overheads.index(overhead)]
        names = [item.name for item in self.prices.candidates]
        return sum(
            float(found[layer, part, names.index(item.name)])
            for layer, pair in enumerate(layers)
            for part, item in enumerate((pair.keys, pair.values))
        )


def _interpolated(lines: Sequence[Line], values: Sequence[float], kv_bits: float) -> float:
    """A figure, less of which is better, at so many bits, between those of the best lines."""
    all_points = [(line.bits, value) for line, value in zip(lines, values, strict=True)]
    best = sorted(
        point
        for point in all_points
        if not any(x[0] <= point[0] and x[1] < point[1] for x in all_points)
    )
    return float(np.interp(kv_bits, [x for x, _ in best], [y for _, y in best]))


def line_sheet(title: str, lines: Sequence[Line]) -> Sheet:
    """Errors and frames."""
    rows = [
        (
            line.name,
            f"{line.bits:.3f}",
            f"{line.overhead}",
            f"{line.predicted:.4f}",
            f"{line.measured:.4f}",
            f"{line.attention_predicted:.4f}",
            f"{line.attention:.4f}",
            f"{line.attention_test:.4f}",
            *(f"{mean:.1f} ± {spread:.1f}" for mean, spread in line.frames),
        )
        for line in lines
    ]
    errors = ("latents, predicted", "measured", "attention, predicted", "measured", "on the test")
    chunks = tuple(f"chunk {index + 2}, dB" for index in range(NUM_CHUNKS))
    headings = ("formats", "all bits", "overhead", *errors, *chunks)
    return Sheet(title=title, headings=headings, rows=tuple(rows))


def worth_sheet(budgets: Sequence[Budget]) -> Sheet:
    """Errors on the test, and frames, against uniform formats."""
    rows = []
    for budget in budgets:
        whole = budget.uniform_attention
        errors = (budget.pair.attention_test, budget.chosen.attention_test, budget.per_head)
        shown = [f"{error:.4f} ({error / whole - 1:+.0%})" for error in errors]
        lines = (budget.pair, budget.by_attention, budget.chosen)
        gains = [
            " ".join(
                f"{mean - base:+.1f}"
                for (mean, _), base in zip(line.frames, budget.uniform_frames, strict=True)
            )
            for line in lines
        ]
        rows.append((f"{budget.kv_bits}", f"{whole:.4f}", *shown, *gains))
    return Sheet(
        title="Against uniform formats of as many bits",
        headings=(
            "bits at most",
            "attention, uniform",
            "one pair",
            "by layer",
            "by head",
            "dB gained, one pair",
            "by attention alone",
            "by layer",
        ),
        rows=tuple(rows),
    )


def format_sheet(budgets: Sequence[Budget]) -> Sheet:
    """What was chosen."""
    num_layers = len(budgets[0].chosen.layers)
    rows = [
        (
            f"{budget.kv_bits}, {line.name}",
            *(f"{keys} / {values}" for keys, values in line.layers),
        )
        for budget in budgets
        for line in (budget.chosen, budget.by_attention, budget.pair)
    ]
    headings = ("formats of K / V", *(f"layer {layer}" for layer in range(num_layers)))
    return Sheet(title="What is chosen", headings=headings, rows=tuple(rows))


def main(
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    chunks: Annotated[int, typer.Option(min=2, help="Chunks of the calibration video.")] = 8,
    test_chunks: Annotated[int, typer.Option(min=2, help="Chunks of the test video.")] = 24,
    videos: Annotated[int, typer.Option(min=2, help="Videos whose frames are compared.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of all these videos.")] = 0,
) -> None:
    """Measure and write the report."""
    torch.set_num_threads(1)
    frames = Frames(videos, seed)
    captures = frames.record(0, chunks), frames.record(1, test_chunks)
    study = Study(*captures, frames)
    uniform = tuple(study.uniform())
    budgets = tuple(study.budget(kv_bits, uniform) for kv_bits in BUDGETS)
    report = Report(
        version=__version__,
        calibration=captures[0][0].info.prompt,
        test=captures[1][0].info.prompt,
        num_tokens=(captures[0][0].num_tokens, captures[1][0].num_tokens),
        videos=videos,
        effects=tuple((keys, values) for keys, values in study.effects.tolist()),
        uniform=uniform,
        budgets=budgets,
    )
    lines = [
        msgspec.structs.replace(line, name=f"{budget.kv_bits}, {line.name}")
        for budget in budgets
        for line in (budget.chosen, budget.by_attention, budget.pair)
    ]
    sheets = (
        line_sheet("One format for all", uniform),
        line_sheet("Chosen", lines),
        format_sheet(budgets),
        worth_sheet(budgets),
    )
    text = "\n\n".join(["# Formats by layer", *map(section, sheets)]) + "\n"
    write_whole(output / "allocation.json", msgspec.json.format(msgspec.json.encode(report)))
    write_whole(output / "allocation.md", text.encode())
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
