"""Where WorldPlay's weights lie, and what their place says of them."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from qvg_engine.errors import CheckpointError
from qvg_engine.models.wan.checkpoint import STATE_DICT_NAMES
from qvg_engine.models.wan.files import network_shards
from qvg_engine.models.weights import Weights
from qvg_engine.models.worldplay.hunyuan_config import PUBLISHED_ROPE_DIMS, PUBLISHED_ROPE_THETA

WAN_MARK = "condition_embedder.action_embedder.linear_1.weight"
HUNYUAN_MARK = "action_in.mlp.0.weight"
"""A tensor whose name ends so is in every checkpoint of the 5B, and of the 8B, and in no other."""

CONFIG_NAME = "config.json"
PUBLISHED_FOLDERS = (
    "ar_distilled_action_model",
    "ar_rl_model",
    "ar_model",
    "wan_distilled_model",
    "wan_transformer",
)
GUIDED_FOLDERS = ("ar_model", "ar_rl_model")
"""Those whose weights take many steps with guidance."""

Kind = Literal["5b", "8b"]


class WorldPlayFiles(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One checkpoint: its tensors by their names in the files, and what is known beside them."""

    name: str
    kind: Kind
    weights: Weights
    guided: bool = False
    num_heads: int | None = None
    rope_dims: tuple[int, int, int] = PUBLISHED_ROPE_DIMS
    rope_theta: float = PUBLISHED_ROPE_THETA


def find_worldplay(path: Path) -> WorldPlayFiles | None:
    """The checkpoint at `path`, a weights file or a folder; None if it is of another model.

    A folder holds `diffusion_pytorch_model.safetensors`, its shards or `model.pt`, or one of the
    published folders. Raises `CheckpointError` for a folder with several of those, for a file that
    is broken and for a config that does not suit.
    """
    folder = path.parent if path.is_file() else _model_folder(path)
    files = (path,) if path.is_file() else _files_in(folder)
    weights = Weights(files, STATE_DICT_NAMES)
    kind = _kind(weights)
    if kind is None:
        return None
    given = _read_config(folder / CONFIG_NAME)
    return WorldPlayFiles(
        name=folder.resolve().name,
        kind=kind,
        weights=weights,
        guided=folder.resolve().name in GUIDED_FOLDERS,
        **(_wan_fields(given) if kind == "5b" else _hunyuan_fields(given)),
    )


def _model_folder(path: Path) -> Path:
    """The folder itself, or the published one that is in it."""
    if _files_in(path):
        return path
    published = [path / name for name in PUBLISHED_FOLDERS if _files_in(path / name)]
    if len(published) > 1:
        raise CheckpointError(
            f"{path} holds several models: give one of its folders "
            f"{', '.join(item.name for item in published)}"
        )
    return published[0] if published else path


def _files_in(folder: Path) -> tuple[Path, ...]:
    pickled = folder / "model.pt"
    return network_shards(folder) or ((pickled,) if pickled.is_file() else ())


def _kind(weights: Weights) -> Kind | None:
    for name in weights.shapes:
        if name.endswith(WAN_MARK):
            return "5b"
        if name.endswith(HUNYUAN_MARK):
            return "8b"
    return None


def _read_config(path: Path) -> dict[str, Any]:
    """What `config.json` says, or nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, OSError) as error:
        raise CheckpointError(f"{path} is no config of a network: {error}") from error
    return content


def _wan_fields(given: dict[str, Any]) -> dict[str, Any]:
    return {"num_heads": given.get("num_attention_heads")}


def _hunyuan_fields(given: dict[str, Any]) -> dict[str, Any]:
    for name, only in (("patch_size", [1, 1, 1]), ("mm_single_blocks_depth", 0)):
        if given.get(name, only) != only:
            raise CheckpointError(f"config.json: {name} is {given[name]}: only {only} is known")
    return {
        "rope_dims": tuple(given.get("rope_dim_list", PUBLISHED_ROPE_DIMS)),
        "rope_theta": float(given.get("rope_theta", PUBLISHED_ROPE_THETA)),
    }
