"""What each contender loses of captured K and V, and in how many bits.

    python benchmarks/contender_errors.py --capture runs/mine.safetensors --json errors.json

prints a table, and writes all figures. Without `--capture`, K and V are those of a short video of
the embedded model. Captures are made as docs/quality.md says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from qvg_engine import EngineConfig, VideoRequest, __version__
from qvg_engine.errors import ConfigError, QvgError
from qvg_engine.kernels.kmeans import MAX_CENTROIDS
from qvg_engine.loading import load_family
from qvg_engine.models.pocket.clips import all_scenes
from qvg_engine.quality.capture import Capture, load
from qvg_engine.quality.contender import Contender
from qvg_engine.quality.contenders import CONTENDERS, contender
from qvg_engine.quality.figures import decibels
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.recorder import record_video
from qvg_engine.quality.table.books import BookFigures, LayerBooks

_FILE_WIDTH = 100
"""Columns of the table where there is no terminal that has a width."""


class ContenderErrors(msgspec.Struct, frozen=True, kw_only=True):
    """One contender on one layer.

    `bits` and `shared_bits` are the means of K's and V's, see `RoundTrip`. Errors of K and V are
    squared and relative, that of attention's output is the square root of such a ratio.
    """

    layer: int
    bits: float
    shared_bits: float
    key_error: float
    value_error: float
    attention_error: float


class ContenderRow(msgspec.Struct, frozen=True, kw_only=True):
    """One contender: means over `layers`, and those."""

    name: str
    bits: float
    shared_bits: float
    total_bits: float
    key_error: float
    value_error: float
    attention_error: float
    key_db: float
    value_db: float
    layers: tuple[ContenderErrors, ...]


class ContenderReport(msgspec.Struct, frozen=True, kw_only=True):
    """All figures, and what they were measured on."""

    version: str
    model: str
    prompt: str
    num_tokens: int
    layers: tuple[int, ...]
    centroids: int
    seed: int
    contenders: tuple[ContenderRow, ...]


def measure(
    capture: Capture,
    contenders: Sequence[Contender],
    *,
    layers: Sequence[int],
    centroids: int,
    seed: int,
) -> ContenderReport:
    """The errors of all contenders, layer by layer."""
    found: dict[str, list[ContenderErrors]] = {item.name: [] for item in contenders}
    for layer in layers:
        books = LayerBooks(capture, layer, video=0, seed=seed, attend_every=1)
        for item in track(contenders, f"layer {layer}", console=Console(stderr=True)):
            found[item.name].append(_errors(layer, books.measure(item, centroids=centroids)))
    return ContenderReport(
        version=__version__,
        model=capture.info.model,
        prompt=capture.info.prompt,
        num_tokens=capture.num_tokens,
        layers=tuple(layers),
        centroids=centroids,
        seed=seed,
        contenders=tuple(_row(name, books) for name, books in found.items()),
    )


def to_table(report: ContenderReport) -> Table:
    """The means of every contender, in order of all bits."""
    title = (
        f"{report.model}, {report.num_tokens:,} tokens, layers "
        f"{', '.join(map(str, report.layers))}, {report.centroids} centroids a stage"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("contender", no_wrap=True)
    for heading in ("bits", "shared", "all", "K, dB", "V, dB", "attention"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(report.contenders, key=lambda row: row.total_bits):
        table.add_row(
            row.name,
            f"{row.bits:.4f}",
            f"{row.shared_bits:.3f}",
            f"{row.total_bits:.3f}",
            f"{row.key_db:.2f}",
            f"{row.value_db:.2f}",
            f"{row.attention_error:.4f}",
        )
    return table


def record_pocket(num_frames: int, layers: Sequence[int] | None, seed: int) -> Capture:
    """K and V of the embedded model."""
    config = EngineConfig(device="cpu", kv_format="bf16", max_streams=1)
    request = VideoRequest(
        request_id="capture",
        prompt=all_scenes()[0].prompt,
        num_frames=num_frames,
        seed=seed,
        output="latents",
        trace=True,
    )
    return record_video(load_family(config), config, request, layers=layers)


def main(
    capture: Annotated[Path | None, typer.Option(help="A capture as safetensors.")] = None,
    contenders: Annotated[
        str | None, typer.Option(help="Names with commas between them; all by default.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers, such as 0,3; all that were captured by default.")
    ] = None,
    centroids: Annotated[
        int,
        typer.Option(min=1, max=MAX_CENTROIDS, help="Centroids of a stage, where there are any."),
    ] = 64,
    num_frames: Annotated[
        int, typer.Option(min=24, help="Length of the video that is made without --capture.")
    ] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the video and of k-means.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write all figures to this file.")
    ] = None,
) -> None:
    """Compare the errors of contenders on captured K and V."""
    torch.set_num_threads(1)
    try:
        names = CONTENDERS if contenders is None else _parts(contenders)
        picked = [contender(name) for name in names]
        numbers = None if layers is None else [_layer(part) for part in _parts(layers)]
        source = load(capture) if capture else record_pocket(num_frames, numbers, seed)
        report = measure(
            source,
            picked,
            layers=_captured(source, numbers),
            centroids=centroids,
            seed=seed,
        )
        if json_path is not None:
            content = msgspec.json.format(msgspec.json.encode(report), indent=2)
            write_whole(json_path, content + b"\n")
    except QvgError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(to_table(report))
    console.print("Errors of K and V are squared, that of attention is not; all are relative.")


def _errors(layer: int, found: BookFigures) -> ContenderErrors:
    return ContenderErrors(
        layer=layer,
        bits=(found.keys.bits + found.values.bits) / 2,
        shared_bits=(found.keys.shared_bits + found.values.shared_bits) / 2,
        key_error=found.keys.error,
        value_error=found.values.error,
        attention_error=found.attention_error,
    )


def _row(name: str, books: Sequence[ContenderErrors]) -> ContenderRow:
    fields = ("bits", "shared_bits", "key_error", "value_error", "attention_error")
    means = {field: float(np.mean([getattr(book, field) for book in books])) for field in fields}
    return ContenderRow(
        name=name,
        **means,
        total_bits=means["bits"] + means["shared_bits"],
        key_db=decibels(means["key_error"]),
        value_db=decibels(means["value_error"]),
        layers=tuple(books),
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _layer(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"layer {text!r} is no number: give whole numbers, such as 0,3")
    return int(text)


def _captured(capture: Capture, numbers: Sequence[int] | None) -> list[int]:
    for number in numbers or ():
        if number not in capture.layers:
            known = ", ".join(map(str, capture.layers))
            raise ConfigError(f"layer {number} was not captured: there are {known}")
    return list(numbers or capture.layers)


if __name__ == "__main__":
    typer.run(main)
