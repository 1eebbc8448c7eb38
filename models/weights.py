"""Weights that are read one by one: the names and shapes first, then a tensor at a time.

A checkpoint is one file or several. What it holds is known from the files' headers; the tensors are
mapped, not read at once, and the files are opened anew every now and then, so that the host holds
little more than what the caller keeps.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvg_engine.errors import CheckpointError
from qvg_engine.models.weights_file import broken_file_is_an_error, check_suffix, state_dict_in

_MAPPED_BYTES = 32 * 2**20
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Weights:
    """The tensors of a checkpoint.

    `shapes` holds a tensor on the meta device under each name.
    """

    def __init__(self, paths: Sequence[Path], names: tuple[str, ...] = ()) -> None:
        """Read the headers of `paths`, one checkpoint together.

        `names` are those under which a `.pt` file may keep its state dict, see `state_dict_in`.
        Raises `CheckpointError` for files that are missing, broken or no state dict.
        """
        self.paths = tuple(paths)
        self._names = names
        self.shapes: dict[str, Tensor] = {}
        self._homes: dict[str, Path] = {}
        for path in self.paths:
            check_suffix(path)
            for name, shape in _read_header(path, names).items():
                if name in self.shapes:
                    raise CheckpointError(f"{path} and {self._homes[name]} both hold {name}")
                self.shapes[name] = shape
                self._homes[name] = path

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(shape.nbytes for shape in self.shapes.values())

    def read(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The tensors with these names (all by default), file by file.

        A tensor lives in a mapped file: copy what is to be kept before the next one.
        """
        wanted = list(self.shapes if names is None else names)
        for path in self.paths:
            in_file = [name for name in wanted if self._homes[name] == path]
            read = _read_safetensors if path.suffix == ".safetensors" else self._read_pickle
            yield from read(path, in_file)

    def _read_pickle(self, path: Path, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        # What was saved in the old way, not as an archive, can only be read as a whole.
        can_map = zipfile.is_zipfile(path)
        for batch in _batches(names, self.shapes) if can_map else [names]:
            state = state_dict_in(_load_pickle(path, mmap=can_map), self._names, path)
            for name in batch:
                yield name, state.pop(name)


def _read_header(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with broken_file_is_an_error(path):
            return _safetensors_header(path)
    return state_dict_in(_load_pickle(path, map_location="meta"), names, path)


def _safetensors_header(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    shapes = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            part = file.get_slice(name)
            dtype = _SAFETENSORS_DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(f"{path}: {name} is of type {part.get_dtype()}: not known")
            shapes[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    if not shapes:
        raise CheckpointError(f"{path} holds no named tensors: give a network's state dict")
    return shapes


def _read_safetensors(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with broken_file_is_an_error(path):
        shapes = _safetensors_header(path)
    for batch in _batches(names, shapes):
        with broken_file_is_an_error(path):
            file = safe_open(path, framework="pt")
        with file:
            for name in batch:
                yield name, file.get_tensor(name)  # type: ignore[no-untyped-call]


def _load_pickle(path: Path, *, map_location: str = "cpu", mmap: bool = False) -> dict[str, Any]:
    with broken_file_is_an_error(path):
        content = torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no named tensors: give a network's state dict")
    return dict(content)


def _batches(names: Sequence[str], shapes: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in order, cut where their tensors are about to take more than is to be mapped."""
    batch: list[str] = []
    num_bytes = 0
    for name in names:
        if batch and num_bytes + shapes[name].nbytes > _MAPPED_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(name)
        num_bytes += shapes[name].nbytes
    if batch:
        yield batch


def fill_module(
    module: nn.Module,
    weights: Weights,
    file_names: Mapping[str, str],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Give a module that was made on the meta device its weights, tensor by tensor.

    `file_names` maps each name of the module's state dict, which must be complete, to one of
    `weights`; `change` may turn a tensor of the file into another. On the device "meta" the module
    only takes the dtype.
    """
    # Not the module's own `to`, which diffusers overrides to warn of what is no matter here.
    nn.Module.to(module, dtype)
    if torch.device(device).type != "meta":
        names: dict[str, list[str]] = {}
        for name, file_name in file_names.items():
            names.setdefault(file_name, []).append(name)
        state: dict[str, Tensor] = {}
        for file_name, value in weights.read(names):
            if change is not None:
                value = change(file_name, value)
            stored = value.to(device=device, dtype=dtype, copy=True)
            state |= dict.fromkeys(names[file_name], stored)
            del value
        module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)
