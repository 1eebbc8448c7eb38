"""Where WorldPlay's weights lie, and what their place says of them."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from qvg_engine.errors import CheckpointError
from qvg_engine.models.shards import safetensors_in
from qvg_engine.models.wan.checkpoint import STATE_DICT_NAMES
from qvg_engine.models.weights import Weights
from qvg_engine.models.worldplay.hunyuan_config import PUBLISHED_ROPE_DIMS, PUBLISHED_ROPE_THETA

WAN_MARK = "condition_embedder.action_embedder.linear_1.weight"
HUNYUAN_MARK = "action_in.mlp.0.weight"
"""A tensor whose name ends so is in every checkpoint of the 5B, and of the 8B, and in no other."""

WAN_BASE = "Wan2.2-TI2V-5B-Diffusers"
"""The model whose VAE and text encoder the 5B shares."""

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

_STEM = "diffusion_pytorch_model"

Kind = Literal["5b", "8b"]


class WorldPlayFiles(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One checkpoint: its tensors by their names in the files, and what is known beside them.

    `folders` are where the VAE and the 5B's text encoder may lie, the nearest first.
    """

    name: str
    folders: tuple[Path, ...]
    kind: Kind
    weights: Weights
    guided: bool = False
    num_heads: int | None = None
    rope_dims: tuple[int, int, int] = PUBLISHED_ROPE_DIMS
    rope_theta: float = PUBLISHED_ROPE_THETA


class _WanConfigFile(msgspec.Struct):
    num_attention_heads: int | None = None

    def fields(self) -> dict[str, Any]:
        return {"num_heads": self.num_attention_heads}


class _HunyuanConfigFile(msgspec.Struct):
    rope_dim_list: tuple[int, int, int] = PUBLISHED_ROPE_DIMS
    rope_theta: float = PUBLISHED_ROPE_THETA
    patch_size: tuple[int, int, int] | int = 1
    mm_single_blocks_depth: int = 0

    def fields(self) -> dict[str, Any]:
        if self.patch_size not in (1, (1, 1, 1)):
            raise CheckpointError(f"config.json: patch_size is {self.patch_size}: 1 alone is known")
        if self.mm_single_blocks_depth:
            raise CheckpointError(
                f"config.json: mm_single_blocks_depth is {self.mm_single_blocks_depth}: single "
                "blocks are not known"
            )
        return {"rope_dims": self.rope_dim_list, "rope_theta": self.rope_theta}


_Config = _WanConfigFile | _HunyuanConfigFile
_CONFIGS: dict[Kind, type[_Config]] = {"5b": _WanConfigFile, "8b": _HunyuanConfigFile}


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
    return WorldPlayFiles(
        name=folder.resolve().name,
        folders=_folders_around(folder.resolve()),
        kind=kind,
        weights=weights,
        guided=folder.resolve().name in GUIDED_FOLDERS,
        **_read_config(folder / CONFIG_NAME, _CONFIGS[kind]).fields(),
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


def _folders_around(folder: Path) -> tuple[Path, ...]:
    near = (folder, folder.parent)
    return tuple(place for item in near for place in (item / WAN_BASE, item))


def _files_in(folder: Path) -> tuple[Path, ...]:
    """The files of a network: as diffusers saves it, or `model.pt`; none if neither is there."""
    names = (f"{_STEM}.safetensors", f"{_STEM}.safetensors.index.json")
    if any((folder / name).is_file() for name in names):
        return tuple(safetensors_in(folder, _STEM))
    pickled = folder / "model.pt"
    return (pickled,) if pickled.is_file() else ()


def _kind(weights: Weights) -> Kind | None:
    for name in weights.shapes:
        if name.endswith(WAN_MARK):
            return "5b"
        if name.endswith(HUNYUAN_MARK):
            return "8b"
    return None


def _read_config(path: Path, config_type: type[_Config]) -> _Config:
    """What `config.json` says, or what was published where there is none."""
    if not path.is_file():
        return config_type()
    try:
        return msgspec.json.decode(path.read_bytes(), type=config_type)
    except (msgspec.DecodeError, OSError) as error:
        raise CheckpointError(f"{path} is no config of this network: {error}") from error
