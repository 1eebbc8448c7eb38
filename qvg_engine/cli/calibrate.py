"""`qvg-engine calibrate`: its options. What it does is in write_allocation.py."""

from pathlib import Path
from typing import Annotated

import typer

from qvg_engine.cli.options import (
    Device,
    Model,
    NumFrames,
    Seconds,
    engine_settings,
)
from qvg_engine.cli.prompts import gather_prompts
from qvg_engine.cli.video_length import VideoLength
from qvg_engine.cli.write_allocation import AllocationSettings, write_allocation


def calibrate(
    kv_bits: Annotated[
        float, typer.Option(help="Bits an element of K and V, codebooks included, such as 1.8.")
    ],
    output: Annotated[Path, typer.Option(help="File for the formats, ending in .json.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to calibrate on; one short video a prompt.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="A text file with more prompts, one a line.")
    ] = None,
    model: Model = "pocket",
    seconds: Seconds = None,
    num_frames: NumFrames = None,
    chunks: Annotated[
        int, typer.Option(min=2, max=10_000, help="Chunks of each calibration video.")
    ] = 8,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first video; the next ones count up.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """Choose how each layer stores K and V under a budget of bits, for generate --kv-format.

    The formats suit videos of the length that is given; longer ones take the same bits or fewer.
    The file appears under its name when it is complete, in the place of one that was there.
    """
    settings = AllocationSettings(
        prompts=tuple(gather_prompts(prompts or [], prompts_file)),
        length=VideoLength(seconds=seconds, num_frames=num_frames),
        kv_bits=kv_bits,
        num_chunks=chunks,
        seed=seed,
        output=output,
    )
    engine = engine_settings(
        model=model, kv_format=None, max_streams=None, kv_memory=None, device=device
    )
    write_allocation(settings, engine)
