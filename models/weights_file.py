"""Reading tensors from a file without running code from it.

Safetensors first; `.pt` and `.pth` files go through torch's restricted unpickler
(`weights_only=True`). Every way in which a file can be broken becomes a `CheckpointError`.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvg_engine.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_BROKEN = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
)


def read_weights_file(path: Path) -> dict[str, Any]:
    """Everything in a weights file: tensors by name, or nested dicts of them for `.pt`."""
    check_suffix(path)
    with broken_file_is_an_error(path):
        if path.suffix == ".safetensors":
            # Networks that are not loaded from such a file do without the package.
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no named tensors: give a network's state dict")
    return dict(content)


def check_suffix(path: Path) -> None:
    """Raise `CheckpointError` for a path that is not there or no weights file by its name."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the path of a weights file or folder")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} is not a weights file: give one of {', '.join(SUFFIXES)}")


@contextmanager
def broken_file_is_an_error(path: Path) -> Iterator[None]:
    """Turn what a broken file raises into a `CheckpointError` of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if not isinstance(error, _BROKEN) and type(error).__name__ != "SafetensorError":
            raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is corrupt or truncated ({type(error).__name__}: {reason}): "
            "download or copy it again"
        ) from error


def state_dict_in(
    content: Mapping[str, Any], names: tuple[str, ...], path: Path
) -> dict[str, Tensor]:
    """The state dict in a checkpoint: under the first of `names` that is there, or the whole."""
    for name in names:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content) or not tensors:
        others = sorted(key for key in content if key not in tensors)[:5]
        raise CheckpointError(
            f"{path} is not a network's state dict: {others} are no tensors and none of "
            f"{', '.join(names)} is in it"
        )
    return tensors
