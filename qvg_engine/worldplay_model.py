"""From an engine's settings to WorldPlay."""

from collections.abc import Callable

import torch
from torch import nn

from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.models.companions import find_companions
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.turns import Turns
from qvg_engine.models.vae.hunyuan import HunyuanVaeCodec, find_hunyuan_vae, load_hunyuan_vae
from qvg_engine.models.vae.taehv import TaehvCodec, load_taehv
from qvg_engine.models.worldplay.checkpoint import load_hunyuan_network, load_wan_network
from qvg_engine.models.worldplay.files import WorldPlayFiles
from qvg_engine.models.worldplay.hunyuan_family import LATENT_SIZE as HUNYUAN_SIZE
from qvg_engine.models.worldplay.hunyuan_family import WorldPlayHunyuanFamily, hunyuan_settings
from qvg_engine.models.worldplay.settings import FRAMES_PER_SECOND, WorldPlaySettings
from qvg_engine.models.worldplay.wan_family import LATENT_SIZE as WAN_SIZE
from qvg_engine.models.worldplay.wan_family import WorldPlayWanFamily, wan_settings

_OTHER_FAMILIES = ("lora", "lora_alpha")
_OF_THE_5B = ("num_heads", "text_encoder", "tokenizer")


def load_worldplay(
    files: WorldPlayFiles,
    config: EngineConfig,
    override: Callable[[RolloutSettings, EngineConfig], RolloutSettings],
    *,
    device: torch.device,
    turns: Turns | None = None,
) -> WorldPlayWanFamily | WorldPlayHunyuanFamily:
    """Load a network to `device`, or for `turns`, rolled out as it was published.

    But for what the settings say. On the device "meta" no weights are read: the family says what it
    would take. Raises `CheckpointError` for weights that cannot be used, and `ConfigError` for
    settings that the model does not have.
    """
    not_there = _OTHER_FAMILIES if files.kind == "5b" else (*_OTHER_FAMILIES, *_OF_THE_5B)
    for name in not_there:
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}: {files.name!r} does not have it"
            )
    dtype = config.torch_dtype
    if files.kind == "5b":
        num_heads = config.num_heads or files.num_heads
        network = load_wan_network(files, device=device, dtype=dtype, num_heads=num_heads)
        _add(network, turns)
        settings = _settings(override(wan_settings((network.config.in_dim, *WAN_SIZE)), config))
        return WorldPlayWanFamily(network, settings, name=files.name, turns=turns)
    joint = load_hunyuan_network(files, device=device, dtype=dtype)
    _add(joint, turns)
    defaults = hunyuan_settings(
        (joint.config.latent_channels, *HUNYUAN_SIZE), distilled=not files.guided
    )
    settings = _settings(override(defaults, config))
    return WorldPlayHunyuanFamily(joint, settings, name=files.name, turns=turns)


def load_hunyuan_codec(
    files: WorldPlayFiles,
    config: EngineConfig,
    *,
    device: torch.device,
    turns: Turns | None = None,
) -> HunyuanVaeCodec | TaehvCodec | None:
    """The VAE of an 8B: the one that was given, else HunyuanVideo-1.5's beside it; None for none.

    A file named tae... is TAEHV. Raises `ConfigError` and `CheckpointError` as `load_worldplay`.
    """
    given = find_companions((), vae=config.vae).vae
    path = given or find_hunyuan_vae(files.folders)
    if path is None:
        return None
    dtype = config.torch_dtype
    if path.name.startswith("tae"):
        return load_taehv(
            path, device=device, dtype=dtype, frames_per_second=FRAMES_PER_SECOND, turns=turns
        )
    return load_hunyuan_vae(
        path,
        device=device,
        dtype=dtype,
        frames_per_second=FRAMES_PER_SECOND,
        attention_frames=config.vae_attention_frames,
        turns=turns,
    )


def _add(network: nn.Module, turns: Turns | None) -> None:
    if turns is not None:
        turns.add(network)


def _settings(settings: RolloutSettings) -> WorldPlaySettings:
    assert isinstance(settings, WorldPlaySettings), type(settings)
    return settings
