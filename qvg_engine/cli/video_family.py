"""The models that the command line can make videos with."""

from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.loading import EMBEDDED_MODEL, load_family
from qvg_engine.models.family import ModelFamily


def load_video_family(config: EngineConfig) -> ModelFamily:
    """Load the model that the settings name; ConfigError if it cannot turn prompts into videos."""
    bare_network = ConfigError(
        f"model {config.model!r} is a bare network without text encoder and VAE: use pocket, or "
        "run it from Python as docs/porting.md shows"
    )
    try:
        family = load_family(config)
    except ConfigError as error:
        if config.model == EMBEDDED_MODEL:
            raise
        # A bare network asks for sizes that the command line has no options for.
        raise bare_network from error
    if family.codec is None or family.prompt_encoder is None:
        raise bare_network
    return family
