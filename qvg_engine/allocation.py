"""Page formats by layer, and the file that keeps them.

An allocation is what `EngineConfig.kv_format` takes instead of one format. Its file is JSON:

    {"version": 1, "model": "pocket", "bits": 1.79, "predicted_error": 0.05, "prompts": [...],
     "codebook_overhead": 0.13, "refinement_overhead": 0.133, "codecs": {"q2": {...}, ...},
     "layers": [["q2", "q1"], ...]}

`layers` names the format of K and of V; `codecs` says in full what each name means, so that a file
keeps its meaning. "dense" and "bf16" need no codec. What is not needed to store K and V (`model`,
`bits`, `predicted_error`, `prompts`) says where the choice comes from.
"""

from pathlib import Path

import msgspec

from qvg_engine.block_manager.format import (
    FORMATS,
    LayerFormats,
    PageFormat,
    check_layer_formats,
)
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec.spec import CodecSpec

VERSION = 1


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """How every layer stores K and V, and what codebooks and refinements may add.

    * `layers`: one pair of formats a layer, in order.
    * `codebook_overhead`, `refinement_overhead`: bits per element that a stream's codebooks, and
      second pages of its newest tokens, may add, where the engine's settings do not say it; None
      for the first: the engine's default.

    Raises `ConfigError` for no layers, or codebooks in some layers only.
    """

    layers: tuple[LayerFormats, ...]
    codebook_overhead: float | None = None
    refinement_overhead: float = 0.0

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("an allocation has no layers: give a pair of formats for every layer")
        check_layer_formats(self.layers)


class AllocationOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Where an allocation comes from.

    * `model`, `prompts`: what it was calibrated on.
    * `bits`: all bits an element, codebooks included, of the stream that it was chosen for.
    * `predicted_error`: the relative error of latents that was predicted, in the first chunks that
      read the cache.
    """

    model: str
    prompts: tuple[str, ...]
    bits: float
    predicted_error: float


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    model: str
    prompts: tuple[str, ...]
    bits: float
    predicted_error: float
    codebook_overhead: float | None
    refinement_overhead: float
    codecs: dict[str, CodecSpec]
    layers: tuple[tuple[str, str], ...]


class _Version(msgspec.Struct, frozen=True):
    version: int


def encode_allocation(allocation: Allocation, origin: AllocationOrigin) -> bytes:
    """The content of the file.

    Two formats of one name must be the same.
    """
    codecs: dict[str, CodecSpec] = {}
    for pair in allocation.layers:
        for item in pair.coded:
            assert item.codec is not None
            assert codecs.setdefault(item.name, item.codec) == item.codec, item.name
    file = _File(
        version=VERSION,
        model=origin.model,
        prompts=origin.prompts,
        bits=origin.bits,
        predicted_error=origin.predicted_error,
        codebook_overhead=allocation.codebook_overhead,
        refinement_overhead=allocation.refinement_overhead,
        codecs=codecs,
        layers=tuple((pair.keys.name, pair.values.name) for pair in allocation.layers),
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def read_allocation(path: Path) -> Allocation:
    """Read an allocation's file; `ConfigError` if it cannot be read, or says what cannot be."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the allocation {path}: {error.strerror}") from error
    try:
        version = msgspec.json.decode(content, type=_Version).version
        if version != VERSION:
            raise ConfigError(
                f"the allocation {path} has version {version}: this program reads {VERSION}; make "
                "it anew with qvg-engine calibrate"
            )
        file = msgspec.json.decode(content, type=_File)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no allocation: {error}") from error
    return Allocation(
        layers=tuple(
            LayerFormats(keys=_format(path, keys, file), values=_format(path, values, file))
            for keys, values in file.layers
        ),
        codebook_overhead=file.codebook_overhead,
        refinement_overhead=file.refinement_overhead,
    )


def _format(path: Path, name: str, file: _File) -> PageFormat:
    if name in file.codecs:
        return PageFormat(name=name, codec=file.codecs[name])
    plain = [known for known, item in FORMATS.items() if item.codec is None]
    if name not in plain:
        known = ", ".join([*file.codecs, *plain])
        raise ConfigError(f"the allocation {path} names the format {name!r}, but has only {known}")
    return FORMATS[name]
