"""From an engine's settings to a model family."""

from pathlib import Path

import msgspec

from qvg_engine.config import EngineConfig
from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.longcat_model import load_longcat
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.longcat.checkpoint import is_longcat
from qvg_engine.models.pocket.family import CONFIG_NAME, WEIGHTS_NAME, load_pocket
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.checkpoint import load_wan
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.files import LATENT_SIZE, WanFiles, find_wan
from qvg_engine.models.worldplay.files import find_worldplay
from qvg_engine.worldplay_model import load_worldplay

EMBEDDED_MODEL = "pocket"

_ROLLOUT_FIELDS = (
    "latent_shape",
    "frames_per_chunk",
    "sink_frames",
    "timesteps",
    "warp_timesteps",
    "shift",
    "commit_timestep",
    "text_len",
    "positions",
)


def load_family(config: EngineConfig) -> ModelFamily:
    """Load the model that the settings name, rolled out as they say.

    Raises `CheckpointError` for weights that cannot be used and `ConfigError` for settings that do
    not suit them.
    """
    device, dtype = config.torch_device, config.torch_dtype
    path = Path(config.model)
    embedded = config.model == EMBEDDED_MODEL
    if not embedded and is_longcat(path):
        return load_longcat(config)
    if embedded or ((path / CONFIG_NAME).is_file() and (path / WEIGHTS_NAME).is_file()):
        if config.lora is not None:
            raise ConfigError(f"lora is {config.lora!r}: model {config.model!r} takes none")
        return load_pocket(
            lambda defaults: override(defaults, config),
            folder=None if embedded else path,
            device=device,
            dtype=dtype,
        )
    worldplay = find_worldplay(path)
    if worldplay is not None:
        return load_worldplay(worldplay, config, override)
    files = find_wan(path, lora=None if config.lora is None else Path(config.lora))
    if files is not None:
        return _load_wan_family(files, config)
    raise CheckpointError(
        f"model {config.model!r} is neither {EMBEDDED_MODEL!r} nor weights: give the path of a .pt "
        f"or .safetensors file, of a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or of one with "
        "a published model's files (docs/models.md)"
    )


def _load_wan_family(files: WanFiles, config: EngineConfig) -> ModelFamily:
    network = load_wan(
        files.network,
        device=config.torch_device,
        dtype=config.torch_dtype,
        num_heads=config.num_heads or files.num_heads,
        lora=files.lora,
        lora_alpha=config.lora_alpha,
    )
    latent_shape = config.latent_shape
    if latent_shape is None:
        if files.recipe is None and not files.is_folder:
            raise ConfigError(
                "latent_shape is not set: a bare network does not know its videos' size; give "
                f"({network.config.in_dim}, height, width) in latent samples"
            )
        latent_shape = (network.config.in_dim, *LATENT_SIZE)
    recipe = {} if files.recipe is None else files.recipe.rollout
    defaults = RolloutSettings(latent_shape=latent_shape, **recipe)
    return WanFamily(network, override(defaults, config), name=files.name)


def override(defaults: RolloutSettings, config: EngineConfig) -> RolloutSettings:
    """A model's own settings with what the engine's settings say."""
    given = {name: getattr(config, name) for name in _ROLLOUT_FIELDS}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    if config.window_frames is not msgspec.UNSET:
        given["window_frames"] = config.window_frames
    return msgspec.structs.replace(defaults, **given)
