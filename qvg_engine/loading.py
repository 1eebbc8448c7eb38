"""From an engine's settings to a model family."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from qvg_engine.config import EngineConfig
from qvg_engine.errors import CheckpointError, ConfigError
from qvg_engine.longcat_model import load_longcat
from qvg_engine.models.companions import find_companions
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.longcat.checkpoint import FRAMES_PER_SECOND, is_longcat, model_folder
from qvg_engine.models.pocket.family import CONFIG_NAME, WEIGHTS_NAME, load_pocket
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.text.umt5 import Umt5Encoder, load_umt5, published_umt5
from qvg_engine.models.turns import Turns
from qvg_engine.models.vae.hunyuan import HunyuanVaeCodec, published_hunyuan_vae
from qvg_engine.models.vae.taehv import TaehvCodec, load_taehv
from qvg_engine.models.vae.wan import WanVaeCodec, load_wan_vae, published_wan_vae
from qvg_engine.models.wan.checkpoint import STATE_DICT_NAMES, load_wan
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.files import (
    LATENT_SIZE,
    PUBLISHED_SIZE,
    WanFiles,
    WanRecipe,
    find_recipe,
    find_wan,
)
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.models.worldplay.files import WorldPlayFiles, find_worldplay
from qvg_engine.models.worldplay.hunyuan_family import CHANNELS as HUNYUAN_CHANNELS
from qvg_engine.models.worldplay.settings import FRAMES_PER_SECOND as WORLDPLAY_FRAMES_PER_SECOND
from qvg_engine.worldplay_model import load_hunyuan_codec, load_worldplay

EMBEDDED_MODEL = "pocket"


class UnknownSizeError(ConfigError):
    """A bare network without a size for its videos."""


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
    "overlap_frames",
)


def load_family(config: EngineConfig, *, headers_only: bool = False) -> ModelFamily:
    """Load the model that the settings name, rolled out as they say.

    With `headers_only` no weights are read: the family says what it would take, and computes
    nothing. A published model may then be named (self-forcing, longlive, causvid), and of parts
    that are not on disk the published sizes are taken.

    Raises `CheckpointError` for weights that cannot be used and `ConfigError` for settings that do
    not suit them.
    """
    family = _load_family(config, headers_only=headers_only)
    if config.vae_attention_frames is not None and not isinstance(family.codec, HunyuanVaeCodec):
        raise ConfigError(
            f"vae_attention_frames is {config.vae_attention_frames}: the VAE here, if there is "
            "one, does not attend to earlier frames; leave it out"
        )
    return family


def _load_family(config: EngineConfig, *, headers_only: bool) -> ModelFamily:
    path = Path(config.model)
    embedded = config.model == EMBEDDED_MODEL
    if not embedded and is_longcat(path):
        return _load_longcat_family(path, config, headers_only=headers_only)
    if embedded or ((path / CONFIG_NAME).is_file() and (path / WEIGHTS_NAME).is_file()):
        if config.lora is not None:
            raise ConfigError(f"lora is {config.lora!r}: model {config.model!r} takes none")
        return load_pocket(
            lambda defaults: override(defaults, config),
            folder=None if embedded else path,
            device=config.torch_device,
            dtype=config.torch_dtype,
        )
    worldplay = find_worldplay(path)
    if worldplay is not None:
        return _load_worldplay_family(worldplay, config, headers_only=headers_only)
    files = find_wan(path, lora=None if config.lora is None else Path(config.lora))
    recipe = find_recipe(config.model) if headers_only else None
    if files is None and recipe is not None:
        return _plan_published(recipe, config)
    if files is not None:
        return _load_wan_family(files, config, headers_only=headers_only)
    raise CheckpointError(
        f"model {config.model!r} is neither {EMBEDDED_MODEL!r} nor weights: give the path of a .pt "
        f"or .safetensors file, of a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or of one with "
        "a published model's files (docs/models.md)"
    )


def _load_wan_family(files: WanFiles, config: EngineConfig, *, headers_only: bool) -> ModelFamily:
    turns = None if headers_only or not config.offload else Turns(config.torch_device)
    network = load_wan(
        files.network,
        device=weights_device(config, turns, headers_only=headers_only),
        dtype=config.torch_dtype,
        num_heads=config.num_heads or files.num_heads,
        lora=files.lora,
        lora_alpha=config.lora_alpha,
        names=STATE_DICT_NAMES if files.recipe is None else files.recipe.names,
    )
    if turns is not None:
        turns.add(network)
    latent_shape = config.latent_shape
    if latent_shape is None:
        if files.recipe is None and not files.is_folder and config.vae is None:
            raise UnknownSizeError(
                "latent_shape is not set: a bare network does not know its videos' size; give "
                f"({network.config.in_dim}, height, width) in latent samples"
            )
        latent_shape = (network.config.in_dim, *LATENT_SIZE)
    recipe = {} if files.recipe is None else files.recipe.rollout
    settings = override(RolloutSettings(latent_shape=latent_shape, **recipe), config)
    codec, encoder = load_companions(
        files.folders, config, settings, turns=turns, headers_only=headers_only
    )
    sizes = network.config
    _check_widths(codec, encoder, sizes.in_dim, sizes.text_dim, config)
    if headers_only and network.config.in_dim == PUBLISHED_SIZE.in_dim:
        codec = codec or published_wan_vae(config.torch_dtype)
    if headers_only and network.config.text_dim == PUBLISHED_SIZE.text_dim:
        encoder = encoder or published_umt5(config.torch_dtype)
    return WanFamily(
        network, settings, name=files.name, codec=codec, prompt_encoder=encoder, turns=turns
    )


def _plan_published(recipe: WanRecipe, config: EngineConfig) -> ModelFamily:
    """A published model that is not on disk: its sizes alone."""
    with torch.device("meta"):
        network = WanNetwork(PUBLISHED_SIZE).to(config.torch_dtype)
    settings = RolloutSettings(
        latent_shape=config.latent_shape or (PUBLISHED_SIZE.in_dim, *LATENT_SIZE), **recipe.rollout
    )
    codec, encoder = load_companions((), config, settings, turns=None, headers_only=True)
    return WanFamily(
        network,
        override(settings, config),
        name=recipe.name,
        codec=codec or published_wan_vae(config.torch_dtype),
        prompt_encoder=encoder or published_umt5(config.torch_dtype),
    )


def _load_longcat_family(path: Path, config: EngineConfig, *, headers_only: bool) -> ModelFamily:
    turns = None if headers_only or not config.offload else Turns(config.torch_device)
    device = weights_device(config, turns, headers_only=headers_only)
    family = load_longcat(config, device=device, turns=turns)
    codec, encoder = load_companions(
        [model_folder(path)],
        config,
        family.settings,
        turns=turns,
        headers_only=headers_only,
        frames_per_second=FRAMES_PER_SECOND,
    )
    sizes = family.network.config
    _check_widths(codec, encoder, sizes.in_channels, sizes.caption_channels, config)
    if headers_only and sizes.in_channels == PUBLISHED_SIZE.in_dim:
        codec = codec or published_wan_vae(config.torch_dtype)
    if headers_only and sizes.caption_channels == PUBLISHED_SIZE.text_dim:
        encoder = encoder or published_umt5(config.torch_dtype)
    family.codec, family.prompt_encoder = codec, encoder
    return family


def _load_worldplay_family(
    files: WorldPlayFiles, config: EngineConfig, *, headers_only: bool
) -> ModelFamily:
    turns = None if headers_only or not config.offload else Turns(config.torch_device)
    device = weights_device(config, turns, headers_only=headers_only)
    family = load_worldplay(files, config, override, device=device, turns=turns)
    if files.kind == "5b":
        codec, encoder = load_companions(
            files.folders,
            config,
            family.settings,
            turns=turns,
            headers_only=headers_only,
            frames_per_second=WORLDPLAY_FRAMES_PER_SECOND,
        )
        family.surround(codec, encoder)
        return family
    vae = load_hunyuan_codec(files, config, device=device, turns=turns)
    if vae is None and headers_only and family.settings.latent_shape[0] == HUNYUAN_CHANNELS:
        vae = published_hunyuan_vae(config.torch_dtype, config.vae_attention_frames)
    family.surround(vae, None)
    return family


def load_companions(
    folders: Sequence[Path],
    config: EngineConfig,
    settings: RolloutSettings,
    *,
    turns: Turns | None,
    headers_only: bool,
    frames_per_second: int = 16,
) -> tuple[WanVaeCodec | TaehvCodec | None, Umt5Encoder | None]:
    """The Wan VAE and the UMT5 encoder that were given or lie in `folders`; None for none.

    Raises `ConfigError` and `CheckpointError` as `load_family` does.
    """
    found = find_companions(
        folders, vae=config.vae, text_encoder=config.text_encoder, tokenizer=config.tokenizer
    )
    device = weights_device(config, turns, headers_only=headers_only)
    codec: WanVaeCodec | TaehvCodec | None = None
    encoder: Umt5Encoder | None = None
    if found.vae is not None:
        load_vae = load_taehv if found.vae.name.startswith("tae") else load_wan_vae
        codec = load_vae(
            found.vae,
            device=device,
            dtype=config.torch_dtype,
            frames_per_second=frames_per_second,
            turns=turns,
        )
    if found.text_encoder is not None:
        assert found.tokenizer is not None, "checked where they were found"
        encoder = load_umt5(
            found.text_encoder,
            found.tokenizer,
            text_len=settings.text_len,
            device=device,
            dtype=config.torch_dtype,
            turns=turns,
        )
    return codec, encoder


def _check_widths(
    codec: WanVaeCodec | TaehvCodec | None,
    encoder: Umt5Encoder | None,
    latent_channels: int,
    text_dim: int,
    config: EngineConfig,
) -> None:
    """`ConfigError` for parts of another model."""
    if codec is not None and codec.latent_channels != latent_channels:
        raise ConfigError(
            f"the VAE beside model {config.model!r} has {codec.latent_channels} latent channels, "
            f"the network {latent_channels}: give the network's own as vae"
        )
    if encoder is not None and encoder.text_dim != text_dim:
        raise ConfigError(
            f"the text encoder beside model {config.model!r} makes rows of {encoder.text_dim} "
            f"channels, the network takes {text_dim}: give its own as text_encoder"
        )


def weights_device(
    config: EngineConfig, turns: Turns | None, *, headers_only: bool
) -> torch.device:
    """Where weights are loaded to: nowhere, to the host for `turns`, or to the engine's device."""
    if headers_only:
        return torch.device("meta")
    return config.torch_device if turns is None else torch.device("cpu")


def override(defaults: RolloutSettings, config: EngineConfig) -> RolloutSettings:
    """A model's own settings with what the engine's settings say."""
    given = {name: getattr(config, name) for name in _ROLLOUT_FIELDS}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    for name in ("window_frames", "rollout_frames"):
        if getattr(config, name) is not msgspec.UNSET:
            given[name] = getattr(config, name)
    return msgspec.structs.replace(defaults, **given)
