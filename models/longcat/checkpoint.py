"""Loading LongCat-Video as it is published: `dit/` with safetensors, `scheduler/` beside it.

Tensors are read one by one, changed in place and moved to where they belong, so that a load takes
little more memory than the weights.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.longcat.config import CLASS_NAME, LongCatConfig, config_from_dict
from qvg_engine.models.longcat.layout import to_internal_
from qvg_engine.models.longcat.lora import LoraWeights
from qvg_engine.models.longcat.network import LongCatNetwork
from qvg_engine.models.wan.checkpoint import check_keys

CONFIG_NAME = "config.json"
NETWORK_FOLDER = "dit"
SCHEDULER_CONFIG = Path("scheduler") / "scheduler_config.json"
_INDEX_SUFFIX = ".safetensors.index.json"
_TRAINED_STEPS = 1000
_MAPPED_BYTES = 64 * 2**20


def is_longcat(path: Path) -> bool:
    """Whether a path is a published LongCat-Video folder, or the `dit` folder in one."""
    if (path / NETWORK_FOLDER / CONFIG_NAME).is_file():
        return True
    try:
        content = json.loads((path / CONFIG_NAME).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("_class_name") == CLASS_NAME


def load_longcat_network(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    lora: Path | None = None,
) -> LongCatNetwork:
    """Build the network of a folder, with a LoRA merged into its weights where one is given.

    Raises `CheckpointError` for files that are missing, corrupt, or of another model (missing and
    left-over keys and wrong shapes are listed).
    """
    folder = _network_folder(path)
    config = read_network_config(path)
    with torch.device("meta"):
        network = LongCatNetwork(config)
    expected = network.state_dict()
    files = _weight_files(folder)
    check_keys(expected, _shapes(files, folder))
    with ExitStack() as stack:
        merged = None
        if lora is not None:
            merged = LoraWeights(stack.enter_context(_open(lora)), expected, path=lora)
        weights = {
            key: _prepare(key, value, merged, config, torch.device(device), dtype)
            for file in files
            for key, value in _tensors(file)
        }
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def read_network_config(path: Path) -> LongCatConfig:
    """The sizes in a folder's `dit/config.json`. Raises `CheckpointError`."""
    file = _network_folder(path) / CONFIG_NAME
    try:
        return config_from_dict(_read_json(file))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def read_shift(path: Path) -> float | None:
    """The scheduler's shift, or None where the folder has no scheduler.

    Raises `CheckpointError` for a scheduler that is not the published kind.
    """
    root = path if (path / NETWORK_FOLDER).is_dir() else path.parent
    file = root / SCHEDULER_CONFIG
    if not file.is_file():
        return None
    content = _read_json(file)
    shift, steps = content.get("shift"), content.get("num_train_timesteps", _TRAINED_STEPS)
    if not isinstance(shift, int | float) or not shift > 0:
        raise CheckpointError(f"{file}: shift is {shift!r}: it must be a positive number")
    if steps != _TRAINED_STEPS or content.get("use_dynamic_shifting"):
        raise CheckpointError(
            f"{file}: the levels must be of {_TRAINED_STEPS} steps, and not shifted dynamically"
        )
    return float(shift)


def _network_folder(path: Path) -> Path:
    inner = path / NETWORK_FOLDER
    folder = inner if inner.is_dir() else path
    if not folder.is_dir():
        raise CheckpointError(f"{path} is not a folder: give a published LongCat-Video folder")
    return folder


def _weight_files(folder: Path) -> list[Path]:
    """The shards that an index names, or else every safetensors file of the folder."""
    indices = sorted(folder.glob(f"*{_INDEX_SUFFIX}"))
    if not indices:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{folder} has no .safetensors file: copy the weights there")
        return files
    names = _read_json(indices[0]).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{indices[0]} has no weight_map of file names")
    files = [folder / Path(name).name for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {indices[0].name} names")
    return files


def _open(file: Path) -> Any:
    from safetensors import safe_open

    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: give the path of a .safetensors file")
    try:
        return safe_open(file, framework="pt")
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file} is corrupt or truncated ({reason}): download or copy it again"
        ) from error


def _shapes(files: list[Path], folder: Path) -> dict[str, Tensor]:
    """Tensors without memory, in the shapes that the files' headers state."""
    found: dict[str, Tensor] = {}
    for file in files:
        with _open(file) as shard:
            for key in shard.keys():  # noqa: SIM118
                if key in found:
                    raise CheckpointError(f"{folder}: {key} is in two files: remove one of them")
                found[key] = torch.empty(shard.get_slice(key).get_shape(), device="meta")
    return found


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors. What is mapped and not kept is given back every few of them."""
    with _open(file) as shard:
        keys = list(shard.keys())
    while keys:
        mapped = 0
        with _open(file) as shard:
            while keys and mapped < _MAPPED_BYTES:
                key = keys.pop(0)
                value = shard.get_tensor(key)
                mapped += value.nbytes
                yield key, value
                del value


def _prepare(
    key: str,
    value: Tensor,
    lora: LoraWeights | None,
    config: LongCatConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    value = value.to(device)
    if lora is not None:
        # Before the rounding to `dtype` and before the permutation: it is in the published order.
        value = lora.merged(key, value)
    value = value.to(dtype)
    to_internal_(key, value, config.head_dim)
    return value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}): copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no settings: it must be a JSON object")
    return content
