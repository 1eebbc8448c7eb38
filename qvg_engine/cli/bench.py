"""`qvg-engine bench`: its options. What it does is in measure.py and in qvg_engine/quality/."""

from pathlib import Path
from typing import Annotated

import typer

from qvg_engine.cli.measure import measure
from qvg_engine.cli.numbers import parse_numbers
from qvg_engine.cli.options import Device, Model, engine_settings
from qvg_engine.quality.comparison import QUALITY_FORMATS
from qvg_engine.quality.settings import DEFAULT_FORMATS, BenchSettings

_DEFAULTS = BenchSettings()


def bench(
    model: Model = "pocket",
    num_prompts: Annotated[
        int, typer.Option(help="Videos whose K and V are captured.")
    ] = _DEFAULTS.num_prompts,
    num_psnr_prompts: Annotated[
        int, typer.Option(help="Videos whose frames are compared.")
    ] = _DEFAULTS.num_psnr_prompts,
    num_frames: Annotated[
        int, typer.Option(help="Length of each video in frames.")
    ] = _DEFAULTS.num_frames,
    layers: Annotated[
        str | None, typer.Option(help="Layers to measure, such as 0,3,5; all by default.")
    ] = None,
    formats: Annotated[
        str, typer.Option(help=f"Formats to measure, of {', '.join(QUALITY_FORMATS)}.")
    ] = ",".join(DEFAULT_FORMATS),
    centroids: Annotated[
        str, typer.Option(help="Centroids of a stage; errors are measured for each number.")
    ] = ",".join(map(str, _DEFAULTS.centroids)),
    fit_on: Annotated[
        str, typer.Option(help="Fit codebooks to all tokens that they serve, or the first chunk's.")
    ] = _DEFAULTS.fit_on,
    seed: Annotated[int, typer.Option(help="Seed of prompts, videos and k-means.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write all figures to this file.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder for quality.md and plots.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare the page formats on K and V captured from a model: errors, PSNR, memory."""
    settings = BenchSettings(
        num_prompts=num_prompts,
        num_psnr_prompts=num_psnr_prompts,
        num_frames=num_frames,
        layers=None if layers is None else parse_numbers(layers, name="--layers"),
        formats=tuple(part.strip() for part in formats.split(",")),
        centroids=parse_numbers(centroids, name="--centroids"),
        fit_on=fit_on,  # type: ignore[arg-type]
        seed=seed,
    )
    engine = engine_settings(
        model=model, kv_format="bf16", max_streams=None, kv_memory=None, device=device
    )
    raise typer.Exit(measure(settings, engine, json_path=json_path, output_dir=output_dir))
