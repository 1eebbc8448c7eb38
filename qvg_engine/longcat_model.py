"""From an engine's settings to LongCat-Video."""

from pathlib import Path

from msgspec import UNSET

from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.models.longcat.checkpoint import load_longcat_network, read_shift
from qvg_engine.models.longcat.family import (
    PUBLISHED_SHIFT,
    SEGMENT_FRAMES,
    TEXT_LEN,
    LongCatFamily,
)

_OTHER_FAMILIES = ("sink_frames", "timesteps", "warp_timesteps", "num_heads")


def load_longcat(config: EngineConfig) -> LongCatFamily:
    """Load the folder that the settings name.

    `frames_per_chunk` counts the new latent frames of a segment. Raises `CheckpointError` for
    weights that cannot be used, and `ConfigError` for settings that this family does not have.
    """
    given = [name for name in _OTHER_FAMILIES if getattr(config, name) is not None]
    if config.window_frames is not UNSET:
        given.append("window_frames")
    if given:
        raise ConfigError(
            f"{given[0]} is {getattr(config, given[0])!r}: LongCat-Video does not have it; its "
            "schedule and segments are a request's LongCatConditions"
        )
    path = Path(config.model)
    shift = config.shift
    if shift is None:
        shift = read_shift(path)
    network = load_longcat_network(path, device=config.torch_device, dtype=config.torch_dtype)
    return LongCatFamily(
        network,
        name=path.resolve().name,
        latent_shape=config.latent_shape,
        segment_frames=config.frames_per_chunk or SEGMENT_FRAMES,
        shift=PUBLISHED_SHIFT if shift is None else shift,
        commit_timestep=config.commit_timestep or 0.0,
        text_len=config.text_len or TEXT_LEN,
    )
