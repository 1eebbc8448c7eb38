"""`qvg-engine generate`: its options. What it does is in make_videos.py."""

from pathlib import Path
from typing import Annotated

import typer

from qvg_engine.cli.make_videos import make_videos
from qvg_engine.cli.options import (
    AttentionBackend,
    DecoderSlots,
    Device,
    Dtype,
    KvFormat,
    KvMemory,
    Lora,
    MaxStreams,
    Model,
    ModelParts,
    NumFrames,
    Offload,
    Seconds,
    Size,
    TextEncoder,
    Tokenizer,
    Vae,
    engine_settings,
    parse_size,
)
from qvg_engine.cli.prompts import gather_prompts
from qvg_engine.cli.settings import GenerateSettings
from qvg_engine.cli.video_length import VideoLength


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What each video shows; one video a prompt.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="A text file with more prompts, one a line.")
    ] = None,
    model: Model = "pocket",
    kv_format: KvFormat = None,
    kv_bits: Annotated[
        float | None,
        typer.Option(
            help="Instead of --kv-format: choose formats for every layer that take so many bits "
            "an element, codebooks included, from a short calibration on the first prompt."
        ),
    ] = None,
    seconds: Seconds = None,
    num_frames: NumFrames = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first video; the next ones count up.")
    ] = 0,
    max_streams: MaxStreams = None,
    kv_memory: KvMemory = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for the videos.")] = Path("videos"),
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing videos instead of adding -2, -3, ..."),
    ] = False,
    scale: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Enlarge every pixel so many times; by default until the shorter side has 256.",
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write what the run took to this file.")
    ] = None,
    size: Size = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="An image, or a video whose end the new videos go on from."),
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(
            help="What else the model is conditioned on, as JSON or a .json file: "
            """'{"pose": "w-15", "image": "photo.png"}' (docs/models.md)."""
        ),
    ] = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    tokenizer: Tokenizer = None,
    lora: Lora = None,
    offload: Offload = False,
    decoder_slots: DecoderSlots = None,
    device: Device = "auto",
    dtype: Dtype = None,
    attention_backend: AttentionBackend = None,
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant",
            help="Make a video the same bit for bit whatever is made beside it; slower.",
        ),
    ] = False,
) -> None:
    """Generate videos from prompts, all of them together.

    Each becomes an MP4 named after its prompt and seed. A file appears under its name when it is
    complete; Ctrl-C keeps the complete ones and removes the others.
    """
    settings = GenerateSettings(
        prompts=tuple(gather_prompts(prompts or [], prompts_file)),
        length=VideoLength(seconds=seconds, num_frames=num_frames),
        seed=seed,
        output_dir=output_dir,
        overwrite=overwrite,
        scale=scale,
        json_path=json_path,
        kv_bits=kv_bits,
        size=parse_size(size),
        start_path=start_from,
        conditions=conditions,
        engine_settings=engine_settings(
            model=model,
            kv_format=kv_format,
            max_streams=max_streams,
            kv_memory=kv_memory,
            device=device,
            dtype=dtype,
            attention_backend=attention_backend,
            batch_invariant=batch_invariant,
            decoder_slots=decoder_slots,
            parts=ModelParts(
                vae=vae,
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                lora=lora,
                offload=offload,
            ),
        ),
    )
    raise typer.Exit(make_videos(settings))
