"""Folders as diffusers and transformers save them: a config, and weights in one file or shards."""

import json
from pathlib import Path
from typing import Any

from qvg_engine.errors import CheckpointError


def safetensors_in(folder: Path, stem: str) -> list[Path]:
    """The files of the weights `stem`: one, or those that its index lists.

    Raises `CheckpointError` if there is neither.
    """
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        raise CheckpointError(f"{folder} holds neither {whole.name} nor {index.name}")
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(_is_plain_name(name) for name in table.values()):
        raise CheckpointError(f"{index} lists no files beside it: copy it again")
    return [folder / name for name in sorted(set(table.values()))]


def _is_plain_name(name: object) -> bool:
    """Whether it names a file of the folder itself, and of none other."""
    return isinstance(name, str) and Path(name).name == name


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `CheckpointError` for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no settings: copy it again")
    return content
