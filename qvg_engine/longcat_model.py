"""From an engine's settings to LongCat-Video."""

from pathlib import Path
from typing import TypeVar

import torch
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
from qvg_engine.models.turns import Turns

_Value = TypeVar("_Value")
_Default = TypeVar("_Default")

_OTHER_FAMILIES = ("sink_frames", "timesteps", "warp_timesteps", "positions", "num_heads")
_UNSET_FIELDS = ("window_frames", "rollout_frames")


def load_longcat(
    config: EngineConfig, *, device: torch.device, turns: Turns | None = None
) -> LongCatFamily:
    """Load the network of the folder that the settings name to `device`, or for `turns`.

    `frames_per_chunk` counts the new latent frames of a segment. A `lora` is taken for the one of
    the distilled schedule, which is the default then. Raises `CheckpointError` for
    weights that cannot be used, and `ConfigError` for settings that this family does not have.
    """
    given = [name for name in _OTHER_FAMILIES if getattr(config, name) is not None]
    given += [name for name in _UNSET_FIELDS if getattr(config, name) is not UNSET]
    if given:
        raise ConfigError(
            f"{given[0]} is {getattr(config, given[0])!r}: LongCat-Video does not have it; its "
            "schedule and segments are a request's LongCatConditions"
        )
    path = Path(config.model)
    shift = _or(config.shift, read_shift(path))
    network = load_longcat_network(
        path,
        device=device,
        dtype=config.torch_dtype,
        lora=None if config.lora is None else Path(config.lora),
        lora_alpha=config.lora_alpha,
    )
    if turns is not None:
        turns.add(network)
    return LongCatFamily(
        network,
        name=path.resolve().name,
        latent_shape=config.latent_shape,
        segment_frames=_or(config.frames_per_chunk, SEGMENT_FRAMES),
        shift=_or(shift, PUBLISHED_SHIFT),
        commit_timestep=_or(config.commit_timestep, 0.0),
        text_len=_or(config.text_len, TEXT_LEN),
        distilled=config.lora is not None,
        turns=turns,
    )


def _or(given: _Value | None, default: _Default) -> _Value | _Default:
    return default if given is None else given
