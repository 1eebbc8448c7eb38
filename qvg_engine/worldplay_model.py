"""From an engine's settings to WorldPlay."""

from collections.abc import Callable

from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.worldplay.checkpoint import load_hunyuan_network, load_wan_network
from qvg_engine.models.worldplay.files import WorldPlayFiles
from qvg_engine.models.worldplay.hunyuan_family import WorldPlayHunyuanFamily, hunyuan_settings
from qvg_engine.models.worldplay.settings import WorldPlaySettings
from qvg_engine.models.worldplay.wan_family import WorldPlayWanFamily, wan_settings

_OTHER_FAMILIES = ("lora", "lora_alpha")


def load_worldplay(
    files: WorldPlayFiles,
    config: EngineConfig,
    override: Callable[[RolloutSettings, EngineConfig], RolloutSettings],
) -> ModelFamily:
    """Load a checkpoint, rolled out as it was published but for what the settings say.

    Raises `CheckpointError` for weights that cannot be used, and `ConfigError` for settings that
    the model does not have.
    """
    for name in _OTHER_FAMILIES:
        if getattr(config, name) is not None:
            raise ConfigError(f"{name} is {getattr(config, name)!r}: WorldPlay does not have it")
    device, dtype = config.torch_device, config.torch_dtype
    if files.kind == "5b":
        settings = _settings(override(wan_settings(), config))
        network = load_wan_network(
            files, device=device, dtype=dtype, num_heads=config.num_heads or files.num_heads
        )
        return WorldPlayWanFamily(network, settings, name=files.name)
    if config.num_heads is not None:
        raise ConfigError(f"num_heads is {config.num_heads}: the weights of the 8B say it")
    settings = _settings(override(hunyuan_settings(distilled=not files.guided), config))
    joint = load_hunyuan_network(files, device=device, dtype=dtype)
    return WorldPlayHunyuanFamily(joint, settings, name=files.name)


def _settings(settings: RolloutSettings) -> WorldPlaySettings:
    assert isinstance(settings, WorldPlaySettings), type(settings)
    return settings
