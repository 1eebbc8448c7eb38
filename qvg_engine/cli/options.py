"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from qvg_engine.allocation import Allocation, read_allocation
from qvg_engine.block_manager.format import FORMATS
from qvg_engine.cli.sizes import parse_bytes
from qvg_engine.kernels.paged_attention import Strategy

ALLOCATION_SUFFIX = ".json"
"""How the name of an allocation's file ends."""

Model = Annotated[
    str, typer.Option(help="pocket, the embedded model, or the path of a weights file.")
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
    int | None, typer.Option(min=1, help="Videos that are made at the same time.")
]
KvMemory = Annotated[str | None, typer.Option(help="Memory for the KV-cache, such as 2GiB.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, unless given, float16 or bfloat16: of the network.")
]
AttentionBackend = Annotated[
    str | None,
    typer.Option(
        help="How cached frames are attended to: auto, unless given, or "
        f"{', '.join(get_args(Strategy))}."
    ),
]


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
        "dtype": dtype,
        "attention_backend": attention_backend,
        "batch_invariant": batch_invariant,
    }
    return {name: value for name, value in given.items() if value is not None}


def _read_format(kv_format: str | None) -> str | Allocation | None:
    if kv_format is None or not kv_format.endswith(ALLOCATION_SUFFIX):
        return kv_format
    return read_allocation(Path(kv_format))
