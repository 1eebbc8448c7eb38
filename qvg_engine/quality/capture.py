"""Queries, keys and values of one video as a network computed them, and their file.

A capture holds what the commit passes of one branch gave to attention: for every token of the
clean video its query, key and value in some layers. `recorder.py` makes captures, `save` and `load`
keep them as safetensors:

    layer.{n}.queries, layer.{n}.keys, layer.{n}.values     [tokens, heads, head_dim]
    positions                                               int64 [tokens], 0, 1, 2 ...
    chunk_tokens                                            int64 [chunks]

with everything else as JSON under the metadata key "capture".
"""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qvg_engine.errors import CheckpointError, OutputError
from qvg_engine.kernels.paged_attention import IdentityTransform, ReadTransform, RopeTransform
from qvg_engine.kernels.rope import RopeGrid, RopeTables

_METADATA_KEY = "capture"
_PARTS = ("queries", "keys", "values")


class LayerCapture(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One layer's `queries`, `keys` and `values`, [tokens, heads, head_dim] each.

    Queries and keys are taken after QK-norm and before RoPE, in the engine's order of channels:
    rotation pair i is (i, i + head_dim / 2). Queries may have more heads than keys and values.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


class CaptureInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a capture comes from, and how its tokens are read.

    * `model`, `prompt`, `seed`: of the video.
    * `window_tokens`: how many tokens a chunk may see, sink and itself included; None for all.
      `sink_tokens`: the first tokens, which are always seen.
    * `grid`: height and width of a latent frame in tokens, where keys are rotated by Wan's rule
      when they are read; None where they are used as they are.
    """

    model: str
    prompt: str
    seed: int
    window_tokens: int | None
    sink_tokens: int
    grid: tuple[int, int] | None


class Capture(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Some layers of one video; token number n is row n of every tensor, and its position.

    `chunk_tokens` counts the tokens of each commit pass, in order.
    """

    info: CaptureInfo
    chunk_tokens: tuple[int, ...]
    layers: Mapping[int, LayerCapture]

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(self.chunk_tokens)

    @property
    def positions(self) -> NDArray[np.int64]:
        """The number of every token, int64 [tokens]."""
        return np.arange(self.num_tokens)

    @property
    def transform(self) -> ReadTransform:
        """What is done to queries and keys when they meet."""
        if self.info.grid is None:
            return IdentityTransform()
        keys = next(iter(self.layers.values())).keys
        tables = RopeTables(head_dim=keys.shape[-1], device=keys.device)
        return RopeTransform(RopeGrid(tables, *self.info.grid))

    def chunk(self, index: int) -> slice:
        """The tokens of one chunk."""
        start = sum(self.chunk_tokens[:index])
        return slice(start, start + self.chunk_tokens[index])

    def seen_by(self, index: int) -> tuple[slice, ...]:
        """The cached tokens that a chunk reads, in order: of the sink, and of the window."""
        start, stop = self.chunk(index).start, self.chunk(index).stop
        window, sink = self.info.window_tokens, min(self.info.sink_tokens, start)
        first = sink
        if window is not None:
            first = min(max(sink, stop - (window - self.info.sink_tokens)), start)
        return tuple(
            part for part in (slice(0, sink), slice(first, start)) if part.stop > part.start
        )


def save(capture: Capture, path: Path) -> None:
    """Write a capture to `path`, whole or not at all; OutputError if that fails."""
    tensors = {
        f"layer.{number}.{part}": getattr(layer, part).contiguous()
        for number, layer in capture.layers.items()
        for part in _PARTS
    }
    tensors["positions"] = torch.from_numpy(capture.positions)
    tensors["chunk_tokens"] = torch.tensor(capture.chunk_tokens, dtype=torch.int64)
    metadata = {_METADATA_KEY: msgspec.json.encode(capture.info).decode()}
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, hidden, metadata=metadata)
        os.replace(hidden, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            hidden.unlink()
        raise OutputError(f"cannot write {path}: {error}; name another file") from error


def load(path: Path) -> Capture:
    """Read a capture; CheckpointError for a file that is none, or whose tensors do not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the capture {path}: {error}") from error
    try:
        info = msgspec.json.decode(metadata[_METADATA_KEY], type=CaptureInfo)
        chunk_tokens = tuple(tensors.pop("chunk_tokens").tolist())
        order = torch.arange(sum(chunk_tokens))
        positions = tensors.pop("positions", order)
        numbers = sorted({int(name.split(".")[1]) for name in tensors})
        layers = {
            number: LayerCapture(**{part: tensors[f"layer.{number}.{part}"] for part in _PARTS})
            for number in numbers
        }
    except (KeyError, ValueError, IndexError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{path} is no capture of K and V: {error!r}") from error
    if not torch.equal(positions, order):
        raise CheckpointError(f"{path}: positions are not 0 to {len(order) - 1}, in order")
    for number, layer in layers.items():
        _check_layer(path, number, layer, sum(chunk_tokens))
    return Capture(info=info, chunk_tokens=chunk_tokens, layers=layers)


def _check_layer(path: Path, number: int, layer: LayerCapture, num_tokens: int) -> None:
    queries, keys, values = layer.queries.shape, layer.keys.shape, layer.values.shape
    fits = (
        len(queries) == len(keys) == 3
        and keys == values
        and queries[0] == keys[0] == num_tokens
        and queries[2] == keys[2]
        and queries[1] % keys[1] == 0
    )
    if not fits:
        raise CheckpointError(
            f"{path}: layer {number} has queries {list(queries)}, keys {list(keys)} and values "
            f"{list(values)}, which do not fit each other and {num_tokens} tokens"
        )
