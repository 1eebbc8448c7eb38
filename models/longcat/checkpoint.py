"""Loading LongCat-Video as it is published: `dit/` with safetensors, `scheduler/` beside it.

Keys and shapes are checked from the headers, before anything is read.
"""

import json
from pathlib import Path
from typing import Any

import torch

from qvg_engine.errors import CheckpointError
from qvg_engine.models.longcat.config import CLASS_NAME, LongCatConfig, config_from_dict
from qvg_engine.models.longcat.layout import to_internal_
from qvg_engine.models.longcat.lora import LoraWeights
from qvg_engine.models.longcat.network import LongCatNetwork
from qvg_engine.models.wan.checkpoint import check_keys
from qvg_engine.models.weights import Weights

FRAMES_PER_SECOND = 15
CONFIG_NAME = "config.json"
NETWORK_FOLDER = "dit"
SCHEDULER_CONFIG = Path("scheduler") / "scheduler_config.json"
_INDEX_SUFFIX = ".safetensors.index.json"
_TRAINED_STEPS = 1000


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
    lora_alpha: float | None = None,
) -> LongCatNetwork:
    """Build the network of a folder, with a LoRA merged into its weights where one is given.

    `lora_alpha`: see `LoraWeights`. The host holds one tensor at a time beside what the network
    keeps. On the device "meta" nothing but the headers is read. Raises `CheckpointError` for files
    that are missing, corrupt, or of another model (missing and left-over keys and wrong shapes are
    listed).
    """
    config = read_network_config(path)
    with torch.device("meta"):
        network = LongCatNetwork(config)
    stored = Weights(_weight_files(_network_folder(path)))
    check_keys(network.state_dict(), stored.shapes)
    device = torch.device(device)
    if device.type == "meta":
        return network.to(dtype).eval().requires_grad_(False)
    updates = None if lora is None else LoraWeights(lora, stored.shapes, alpha=lora_alpha)
    weights = {}
    for key, value in stored.read():
        if updates is not None:
            # Before the rounding to `dtype` and before the permutation: in the published order.
            value = updates.merged(key, value.to(device))
        kept = value.to(device=device, dtype=dtype, copy=True)
        to_internal_(key, kept, config.head_dim)
        weights[key] = kept
        del value, kept
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
    file = model_folder(path) / SCHEDULER_CONFIG
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


def model_folder(path: Path) -> Path:
    """The folder that `dit/` lies in, whether it or `dit/` is given."""
    return path if (path / NETWORK_FOLDER).is_dir() else path.parent


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
