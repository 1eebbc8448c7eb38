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
    if config.lora is not None:
        raise ConfigError(f"lora is {config.lora!r}: model {config.model!r} takes none")
    if embedded or (path / CONFIG_NAME).is_file():
        return load_pocket(
            lambda defaults: override(defaults, config),
            folder=None if embedded else path,
            device=device,
            dtype=dtype,
        )
    if not path.is_file():
        raise CheckpointError(
            f"model {config.model!r} is neither {EMBEDDED_MODEL!r} nor weights: give the path of "
            f"a .pt or .safetensors file, or of a folder with {CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    network = load_wan(path, device=device, dtype=dtype, num_heads=config.num_heads)
    if config.latent_shape is None:
        raise ConfigError(
            "latent_shape is not set: a bare network does not know its videos' size; give "
            f"({network.config.in_dim}, height, width) in latent samples"
        )
    defaults = RolloutSettings(latent_shape=config.latent_shape)
    return WanFamily(network, override(defaults, config), name=path.stem)


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
