"""Options that several commands have."""

import re
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import torch
import typer

from qvg_engine.allocation import Allocation, read_allocation
from qvg_engine.block_manager.format import FORMATS
from qvg_engine.cli.sizes import parse_bytes
from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.paged_attention import Strategy

ALLOCATION_SUFFIX = ".json"
"""How the name of an allocation's file ends."""

Model = Annotated[
    str,
    typer.Option(help="pocket, the embedded model; or a weights file or folder (docs/models.md)."),
]
KvFormat = Annotated[
    str | None,
    typer.Option(
        help=f"How the KV-cache is stored: {', '.join(FORMATS)}; or a file of calibrate, whose "
        "name ends in .json. q2 unless given."
    ),
]
Seconds = Annotated[
    float | None, typer.Option(help="Length of each video; 10 unless --num-frames is given.")
]
NumFrames = Annotated[int | None, typer.Option(min=1, help="Length of each video in frames.")]
MaxStreams = Annotated[
    int | None,
    typer.Option(
        "--max-streams", "--streams", min=1, help="Videos that are made at the same time."
    ),
]
KvMemory = Annotated[str | None, typer.Option(help="Memory for the KV-cache, such as 2GiB.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; bfloat16 on a GPU but for pocket."),
]
AttentionBackend = Annotated[
    str | None,
    typer.Option(
        help="How cached frames are attended to: auto, unless given, or "
        f"{', '.join(get_args(Strategy))}."
    ),
]
Size = Annotated[str | None, typer.Option(help="Size of the videos in pixels, such as 832x480.")]
Vae = Annotated[
    str | None, typer.Option(help="A VAE's folder or file; by default one beside the model.")
]
TextEncoder = Annotated[
    str | None,
    typer.Option(help="A text encoder's folder or file; by default one beside the model."),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="A tokenizer's folder; by default one beside the model.")
]
Lora = Annotated[str | None, typer.Option(help="A LoRA that is merged into the network.")]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep weights in host memory; network, VAE and text encoder take turns on the GPU.",
    ),
]
DecoderSlots = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Videos whose decoder state is on the GPU; that of others waits in host memory.",
    ),
]


class ModelParts(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a model, as it was given; None where it was not."""

    vae: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    lora: str | None = None
    offload: bool = False


def engine_settings(
    *,
    model: str,
    kv_format: str | None,
    max_streams: int | None,
    kv_memory: str | None,
    device: str,
    dtype: str | None = None,
    attention_backend: str | None = None,
    batch_invariant: bool = False,
    decoder_slots: int | None = None,
    parts: ModelParts = ModelParts(),  # noqa: B008 - it is frozen
) -> dict[str, Any]:
    """The fields of EngineConfig that were given.

    Raises ConfigError for a size or an allocation's file that cannot be read.
    """
    given = {
        "model": model,
        "kv_format": _read_format(kv_format),
        "max_streams": max_streams,
        "kv_memory": None if kv_memory is None else parse_bytes(kv_memory, name="--kv-memory"),
        "device": device,
        "dtype": dtype or _default_dtype(model, device),
        "attention_backend": attention_backend,
        "batch_invariant": batch_invariant,
        "decoder_slots": decoder_slots,
        "spilled_decoders": _spilled(max_streams, decoder_slots),
        **msgspec.structs.asdict(parts),
    }
    return {name: value for name, value in given.items() if value is not None}


def parse_size(size: str | None) -> tuple[int, int] | None:
    """(width, height) of a size such as 832x480; ConfigError for anything else."""
    if size is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size.strip())
    if match is None:
        raise ConfigError(f"--size is {size!r}: give width and height in pixels, such as 832x480")
    return int(match[1]), int(match[2])


def _spilled(max_streams: int | None, decoder_slots: int | None) -> int | None:
    """Streams beyond the decoder slots, which shall not keep any stream from running."""
    if decoder_slots is None:
        return None
    return max(0, (max_streams or EngineConfig().max_streams) - decoder_slots)


def _default_dtype(model: str, device: str) -> str | None:
    """What published networks were trained in, where it is fast."""
    if model == "pocket" or device == "cpu":
        return None
    return "bfloat16" if torch.cuda.is_available() else None


def _read_format(kv_format: str | None) -> str | Allocation | None:
    if kv_format is None or not kv_format.endswith(ALLOCATION_SUFFIX):
        return kv_format
    return read_allocation(Path(kv_format))
