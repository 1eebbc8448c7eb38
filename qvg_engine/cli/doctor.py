"""`qvg-engine doctor`: what is installed, what runs here, and whether a request would fit."""

import typer

from qvg_engine.cli.examine import examine
from qvg_engine.cli.options import (
    AttentionBackend,
    Device,
    Dtype,
    KvFormat,
    KvMemory,
    MaxStreams,
    Model,
    NumFrames,
    Seconds,
    engine_settings,
)
from qvg_engine.cli.video_length import VideoLength


def doctor(
    model: Model = "pocket",
    kv_format: KvFormat = None,
    seconds: Seconds = None,
    num_frames: NumFrames = None,
    max_streams: MaxStreams = None,
    kv_memory: KvMemory = None,
    device: Device = "auto",
    dtype: Dtype = None,
    attention_backend: AttentionBackend = None,
) -> None:
    """Say what is installed, which kernels run here, and whether videos of a length would fit.

    On a GPU also which attention is taken, as measured here, and why not the others.
    """
    settings = engine_settings(
        model=model,
        kv_format=kv_format,
        max_streams=max_streams,
        kv_memory=kv_memory,
        device=device,
        dtype=dtype,
        attention_backend=attention_backend,
    )
    length = VideoLength(seconds=seconds, num_frames=num_frames)
    raise typer.Exit(examine(settings, length))
