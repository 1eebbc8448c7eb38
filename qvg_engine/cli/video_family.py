"""The models that the command line can make videos with."""

import msgspec

from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.loading import UnknownSizeError, load_family
from qvg_engine.models.family import JointTextFamily, ModelFamily


def load_video_family(config: EngineConfig, *, headers_only: bool = False) -> ModelFamily:
    """Load the model that the settings name; ConfigError if it cannot turn prompts into videos.

    With `headers_only` nothing but its sizes is known, and a model that takes a text encoder's
    states will do.
    """
    try:
        family = load_family(config, headers_only=headers_only)
    except UnknownSizeError as error:
        raise _bare_network(config, "text encoder and VAE") from error
    # No text encoder is known for these: their requests bring its states, in Python.
    takes_states = headers_only and isinstance(family, JointTextFamily)
    missing = [
        name
        for name, part in (("text encoder", family.prompt_encoder), ("VAE", family.codec))
        if part is None and not (takes_states and name == "text encoder")
    ]
    if missing:
        raise _bare_network(config, " and ".join(missing))
    return family


def with_size(config: EngineConfig, size: tuple[int, int] | None) -> EngineConfig:
    """The settings for videos of `size`, (width, height) in pixels; None leaves them as they are.

    Raises ConfigError for a size that the model's VAE and patches do not divide.
    """
    if size is None:
        return config
    family = load_family(config, headers_only=True)
    if family.codec is None:
        raise ConfigError(f"model {config.model!r} has no VAE here, so --size means nothing to it")
    width, height = size
    factor = family.codec.spatial_factor
    if width % factor or height % factor:
        raise ConfigError(f"--size is {width}x{height}: give multiples of {factor}")
    shape = (family.settings.latent_shape[0], height // factor, width // factor)
    return msgspec.structs.replace(config, latent_shape=shape)


def _bare_network(config: EngineConfig, missing: str) -> ConfigError:
    return ConfigError(
        f"model {config.model!r} is a bare network without {missing}: put them beside it, or give "
        "--vae, --text-encoder and --tokenizer (docs/models.md); or use pocket, or run it from "
        "Python as docs/porting.md shows"
    )
