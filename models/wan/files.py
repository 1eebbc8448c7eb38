"""Which files in a folder make up a model of the causal Wan family, and how it is rolled out.

The authors' file names say which training a network went through, and with it its sampler and its
window; a network under another name is rolled out as Self-Forcing is.
"""

from pathlib import Path
from typing import Any

import msgspec

from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.models.shards import read_json, safetensors_in
from qvg_engine.models.wan.checkpoint import STATE_DICT_NAMES
from qvg_engine.models.wan.config import WanConfig

LATENT_SIZE = (60, 104)
"""Latent samples of the 832x480 pixels that the published networks are trained on."""

LORA_NAME = "lora.pt"


class WanRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A published model: the fields of `RolloutSettings` that it sets, and its files.

    `files` are paths within its repository; a file may also lie in the folder itself. `names` are
    those under which a file keeps the network, the one that its authors sample from first.
    """

    name: str
    files: tuple[str, ...]
    rollout: dict[str, Any] = {}
    needs_lora: bool = False
    names: tuple[str, ...] = STATE_DICT_NAMES


SELF_FORCING = WanRecipe(
    name="self-forcing",
    files=(
        "checkpoints/self_forcing_dmd.pt",
        "checkpoints/self_forcing_sid.pt",
        "checkpoints/self_forcing_sid_v2.pt",
    ),
)
LONGLIVE = WanRecipe(
    name="longlive",
    files=("models/longlive_base.pt",),
    rollout={"window_frames": 12, "sink_frames": 3},
    needs_lora=True,
    # The LoRA was trained on, and is merged into, the network itself and not its average.
    names=("generator", "model", "generator_ema"),
)
CAUSVID = WanRecipe(
    name="causvid",
    files=("autoregressive_checkpoint/model.pt",),
    rollout={
        "timesteps": (1000.0, 757.0, 522.0),
        "warp_timesteps": False,
        "shift": 8.0,
        "rollout_frames": 21,
    },
)
CAUSVID_WARPED = WanRecipe(
    name="causvid-warp",
    files=("autoregressive_checkpoint_warp_4step_cfg2/model.pt",),
    rollout={"shift": 8.0, "rollout_frames": 21},
)
PUBLISHED_SIZE = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
PUBLISHED = (SELF_FORCING, LONGLIVE, CAUSVID, CAUSVID_WARPED)

_NETWORK_STEM = "diffusion_pytorch_model"


class WanFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one model.

    `network` are the shards of its weights; `recipe` None stands for a network that no file name
    tells apart; `folders` are where its VAE and text encoder may lie, the nearest first.
    """

    name: str
    network: tuple[Path, ...]
    folders: tuple[Path, ...]
    is_folder: bool = False
    recipe: WanRecipe | None = None
    lora: Path | None = None
    num_heads: int | None = None


def find_wan(path: Path, *, lora: Path | None = None) -> WanFiles | None:
    """The files of the model at `path`, a file or a folder; None if it is none of this family.

    `lora` overrides the one that lies beside the network. Raises `ConfigError` for a folder with
    several models and `CheckpointError` for a network without the LoRA that it needs.
    """
    if path.is_file():
        recipe = next((item for item in PUBLISHED if _is_published(path, item)), None)
        files = _files(path.stem if recipe is None else recipe.name, (path,), recipe)
    elif path.is_dir():
        found = _find_in_folder(path)
        if found is None:
            return None
        files = found
    else:
        return None
    recipe = files.recipe
    if lora is None and recipe is not None and recipe.needs_lora:
        lora = files.network[0].with_name(LORA_NAME)
        if not lora.is_file():
            raise CheckpointError(
                f"{files.network[0]} alone is not {recipe.name}, and {lora} is missing: put the "
                "LoRA there, or give its path as lora"
            )
    return msgspec.structs.replace(files, lora=lora)


def find_recipe(name: str) -> WanRecipe | None:
    """The published model of this name."""
    return next((recipe for recipe in PUBLISHED if recipe.name == name), None)


def _find_in_folder(folder: Path) -> WanFiles | None:
    found: list[tuple[WanRecipe, Path]] = []
    for recipe in PUBLISHED:
        places = [folder / name for name in recipe.files]
        places += [folder / Path(name).name for name in recipe.files]
        here = next((place for place in places if _is_published(place, recipe)), None)
        if here is not None:
            found.append((recipe, here))
    if len(found) > 1:
        listed = ", ".join(str(place) for _, place in found)
        raise ConfigError(f"{folder} holds several models: give one of {listed}")
    if found:
        recipe, place = found[0]
        return _files(recipe.name, (place,), recipe, folder)
    for part in (folder / "transformer", folder):
        shards = network_shards(part)
        if shards:
            return msgspec.structs.replace(
                _files(folder.resolve().name, shards, None, folder),
                num_heads=_heads_in(part / "config.json"),
            )
    return None


def network_shards(folder: Path) -> tuple[Path, ...]:
    """The files of a network as diffusers saves it; none if there is none."""
    names = (f"{_NETWORK_STEM}.safetensors", f"{_NETWORK_STEM}.safetensors.index.json")
    if not any((folder / name).is_file() for name in names):
        return ()
    return tuple(safetensors_in(folder, _NETWORK_STEM))


def _is_published(path: Path, recipe: WanRecipe) -> bool:
    """Whether the file is one of the recipe's; model.pt is told by its folder."""
    for name in map(Path, recipe.files):
        generic = name.name == "model.pt"
        same_folder = path.resolve().parent.name == name.parent.name
        if path.name == name.name and path.is_file() and (same_folder or not generic):
            return True
    return False


def _files(
    name: str, network: tuple[Path, ...], recipe: WanRecipe | None, folder: Path | None = None
) -> WanFiles:
    nearest = network[0].resolve().parent
    folders = (nearest, nearest.parent) if folder is None else (folder, nearest, folder.parent)
    return WanFiles(
        name=name,
        network=network,
        folders=tuple(dict.fromkeys(folders)),
        is_folder=folder is not None,
        recipe=recipe,
    )


def _heads_in(config: Path) -> int | None:
    """Attention heads as diffusers' or Wan's config.json says them."""
    if not config.is_file():
        return None
    content = read_json(config)
    heads = content.get("num_attention_heads") or content.get("num_heads")
    return heads if isinstance(heads, int) and heads > 0 else None
