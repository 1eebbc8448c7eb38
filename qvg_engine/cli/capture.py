"""`qvg-engine capture`: its options. What it does is in capture_videos.py."""

from pathlib import Path
from typing import Annotated

import typer

from qvg_engine.cli.capture_videos import CaptureSettings, capture_videos
from qvg_engine.cli.numbers import parse_numbers
from qvg_engine.cli.options import (
    Device,
    KvFormat,
    KvMemory,
    Model,
    NumFrames,
    Seconds,
    engine_settings,
)
from qvg_engine.cli.prompts import gather_prompts
from qvg_engine.cli.video_length import VideoLength


def capture(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What each video shows; one capture a prompt.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="A text file with more prompts, one a line.")
    ] = None,
    model: Model = "pocket",
    kv_format: KvFormat = None,
    seconds: Seconds = None,
    num_frames: NumFrames = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to capture, such as 0,3,5; all by default.")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(help="KV heads, with the queries that read them; all by default."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="How rows are written: float32, float16 or bfloat16.")
    ] = "float32",
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first video; the next ones count up.")
    ] = 0,
    kv_memory: KvMemory = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for the captures.")] = Path("captures"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace captures that are there.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Write queries, keys (before RoPE), values and positions of a model as it makes videos.

    A video is made after the other, and each becomes a safetensors file named after its prompt and
    seed, with what the commit passes of all its chunks gave to attention. A file appears under its
    name when it is complete; Ctrl-C keeps the complete ones.
    """
    settings = CaptureSettings(
        prompts=tuple(gather_prompts(prompts or [], prompts_file)),
        length=VideoLength(seconds=seconds, num_frames=num_frames),
        seed=seed,
        layers=None if layers is None else parse_numbers(layers, name="--layers"),
        heads=None if heads is None else parse_numbers(heads, name="--heads"),
        dtype=dtype,  # type: ignore[arg-type]
        output_dir=output_dir,
        overwrite=overwrite,
    )
    engine = engine_settings(
        model=model,
        kv_format=kv_format,
        max_streams=1,
        kv_memory=kv_memory,
        device=device,
        batch_invariant=True,
    )
    raise typer.Exit(capture_videos(settings, engine))
