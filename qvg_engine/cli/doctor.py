"""`qvg-engine doctor`: what is installed, what runs here, and whether a request would fit."""

from typing import Annotated

import typer

from qvg_engine.cli.examine import examine
from qvg_engine.cli.options import (
    AttentionBackend,
    DecoderSlots,
    Device,
    Dtype,
    KvFormat,
    KvMemory,
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
from qvg_engine.cli.sizes import parse_bytes
from qvg_engine.cli.video_length import VideoLength


def doctor(
    model: Model = "pocket",
    kv_format: KvFormat = None,
    seconds: Seconds = None,
    num_frames: NumFrames = None,
    size: Size = None,
    streams: MaxStreams = None,
    kv_memory: KvMemory = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(help="Share this much out, such as 24GiB, for every format of the KV-cache."),
    ] = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    tokenizer: Tokenizer = None,
    offload: Offload = False,
    decoder_slots: DecoderSlots = None,
    device: Device = "auto",
    dtype: Dtype = None,
    attention_backend: AttentionBackend = None,
) -> None:
    """Say what is installed, which kernels run here, and whether videos of a length would fit.

    On a GPU also which attention is taken, as measured here, and why not the others. Of a model no
    more than the headers of its files is read; self-forcing, longlive and causvid are known by
    name.
    """
    settings = engine_settings(
        model=model,
        kv_format=kv_format,
        max_streams=streams,
        kv_memory=kv_memory,
        device=device,
        dtype=dtype or ("bfloat16" if gpu_memory is not None and model != "pocket" else None),
        attention_backend=attention_backend,
        decoder_slots=decoder_slots,
        parts=ModelParts(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            offload=offload,
        ),
    )
    length = VideoLength(seconds=seconds, num_frames=num_frames)
    gpu_bytes = None if gpu_memory is None else parse_bytes(gpu_memory, name="--gpu-memory")
    raise typer.Exit(examine(settings, length, size=parse_size(size), gpu_bytes=gpu_bytes))
