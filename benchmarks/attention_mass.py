"""How far each format shifts attention between cached and fresh tokens, and what undoing it gains.

    python benchmarks/attention_mass.py captures/long.safetensors --output reports

writes `attention_mass.md` and `attention_mass.json`.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer
from rich.progress import track

from qvg_engine import __version__
from qvg_engine.quality.attention_mass import OFFSETS, HeadShift, LayerMass, Offset, measure_mass
from qvg_engine.quality.capture import Capture, load
from qvg_engine.quality.comparison import quality_format, with_centroids
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.markdown import section
from qvg_engine.quality.sheets import Sheet
from qvg_engine.quality.stored import store_rows
from qvg_engine.quality.teacher_forced import TeacherForced

FORMATS = ("qvg", "q2", "q1", "q4", "rtn2", "rtn2-searched")


class FormatMass(msgspec.Struct, frozen=True, kw_only=True):
    """One format, layer by layer."""

    name: str
    layers: tuple[LayerMass, ...]

    def error(self, offset: Offset) -> float:
        """The mean over layers of attention's relative error."""
        return float(np.mean([layer.errors[offset] for layer in self.layers]))

    @property
    def heads(self) -> tuple[HeadShift, ...]:
        """All heads of all layers."""
        return tuple(head for layer in self.layers for head in layer.heads)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures, and what they were measured on."""

    version: str
    model: str
    prompt: str
    num_tokens: int
    attending_chunks: tuple[int, ...]
    centroids: int
    formats: tuple[FormatMass, ...]


def measure_format(capture: Capture, name: str, *, centroids: int, every: int) -> FormatMass:
    """Every layer of a capture; codebooks are fitted to all that they serve."""
    page_format = with_centroids(quality_format(name), centroids)
    masses = []
    for layer, rows in capture.layers.items():
        forced = TeacherForced(capture, layer, _attending(capture, every))
        read = tuple(
            store_rows(part, page_format, is_key=is_key, seed=2 * layer + (not is_key)).decoded()
            for part, is_key in ((rows.keys, True), (rows.values, False))
        )
        exact = (rows.keys, rows.values)
        masses.append(
            measure_mass(forced, page_format, exact=exact, read=(read[0], read[1]), layer=layer)
        )
    return FormatMass(name=name, layers=tuple(masses))


def error_sheet(formats: tuple[FormatMass, ...]) -> Sheet:
    """What offsets gain, by format."""
    rows = []
    for found in formats:
        plain = found.error("none")
        gains = [f"{1 - found.error(offset) / plain:+.1%}" for offset in OFFSETS[1:]]
        means = [head.mean for head in found.heads]
        rows.append(
            (
                found.name,
                f"{np.mean(means):+.4f}",
                f"{min(means):+.4f} to {max(means):+.4f}",
                f"{np.mean([head.spread for head in found.heads]):.4f}",
                f"{np.mean([head.formula for head in found.heads]):+.4f}",
                f"{np.mean([head.energy for head in found.heads]):+.4f}",
                f"{plain:.4f}",
                *gains,
            )
        )
    headings = ("format", "mean shift", "heads", "spread over queries", "formula", "energy")
    return Sheet(
        title="Shift of the log-sum-exp over cached tokens, and what an offset takes off the error",
        headings=(*headings, "error of attention", *OFFSETS[1:]),
        rows=tuple(rows),
    )


def head_sheet(found: FormatMass) -> Sheet:
    """One format by layer and head."""
    rows = tuple(
        (
            f"{head.layer}.{head.head}",
            f"{head.mean:+.4f}",
            f"{head.spread:.4f}",
            f"{head.formula:+.4f}",
            f"{head.energy:+.4f}",
            f"{head.correlation:+.2f}",
        )
        for head in found.heads
    )
    headings = ("layer.head", "mean shift", "spread", "formula", "energy", "correlation with q^2")
    return Sheet(title=f"`{found.name}` by layer and head", headings=headings, rows=rows)


def main(
    path: Annotated[Path, typer.Argument(help="A capture of several windows of chunks.")],
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    centroids: Annotated[int, typer.Option(min=1, max=256, help="Of a stage.")] = 64,
    every: Annotated[int, typer.Option(min=1, help="Every so many chunks attend.")] = 8,
) -> None:
    """Measure and write the report."""
    torch.set_num_threads(1)
    capture = load(path)
    formats = tuple(
        measure_format(capture, name, centroids=centroids, every=every)
        for name in track(FORMATS, description="formats")
    )
    report = Report(
        version=__version__,
        model=capture.info.model,
        prompt=capture.info.prompt,
        num_tokens=capture.num_tokens,
        attending_chunks=_attending(capture, every),
        centroids=centroids,
        formats=formats,
    )
    sheets = (error_sheet(formats), *map(head_sheet, formats))
    text = "\n\n".join(["# Attention mass", *map(section, sheets)]) + "\n"
    write_whole(output / "attention_mass.json", msgspec.json.format(msgspec.json.encode(report)))
    write_whole(output / "attention_mass.md", text.encode())
    typer.echo(text)


def _attending(capture: Capture, every: int) -> tuple[int, ...]:
    """Chunks that see a full window, where there are any; else all that read the cache."""
    chunks, window = len(capture.chunk_tokens), capture.info.window_tokens
    full = 1 if window is None else window // capture.chunk_tokens[0]
    return tuple(range(full if full < chunks else 1, chunks, every))


if __name__ == "__main__":
    typer.run(main)
