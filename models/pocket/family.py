"""The embedded model as the engine sees it: a Wan family with its own VAE and vocabulary."""

from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.family import DecoderState, Frames
from qvg_engine.models.pocket.vae import PocketVae
from qvg_engine.models.pocket.vocabulary import Vocabulary
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.checkpoint import build_wan, check_keys
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.weights_file import read_weights_file, state_dict_in

WEIGHTS_NAME: Final = "pocket.safetensors"
CONFIG_NAME: Final = "config.json"
NETWORK_PREFIX: Final = "network."
VAE_PREFIX: Final = "vae."
VOCABULARY_PREFIX: Final = "vocabulary."


class PocketConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `config.json` beside the weights holds."""

    network: WanConfig
    rollout: RolloutSettings
    frames_per_second: int = 16


class PocketCodec:
    """The embedded VAE behind the engine's codec interface."""

    def __init__(self, vae: PocketVae, *, frames_per_second: int) -> None:
        self.vae = vae
        self.latent_channels = vae.latent_channels
        self.spatial_factor = vae.spatial_factor
        self.frames_per_second = frames_per_second

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.vae.state_dict().values())

    def latent_frames(self, num_frames: int) -> int:
        return -(-num_frames // self.vae.temporal_factor)

    def pixel_frames(self, latent_frames: int) -> int:
        return latent_frames * self.vae.temporal_factor

    def encodable_frames(self, num_frames: int) -> int:
        return num_frames // self.vae.temporal_factor * self.vae.temporal_factor

    def encode(self, frames: Frames) -> Tensor:
        latents, _ = self.vae.encode_chunk(torch.from_numpy(np.ascontiguousarray(frames)))
        return latents

    def state_bytes(self, height: int, width: int) -> int:
        return self.vae.state_bytes(height, width)

    def decode_chunk(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        return self.vae.decode_chunk(latents, state)


def load_pocket(
    override: Callable[[RolloutSettings], RolloutSettings] = lambda settings: settings,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WanFamily:
    """The embedded model, from the package or from `folder` (as the export writes it).

    `override` changes the model's rollout settings. Raises `CheckpointError` for files that are
    missing, corrupt or of another model, and `ConfigError` for settings that do not suit it.
    """
    if folder is None:
        with as_file(files("qvg_engine.models.pocket") / "weights") as packaged:
            return load_pocket(override, folder=packaged, device=device, dtype=dtype)
    config = _read_config(folder / CONFIG_NAME)
    path = folder / WEIGHTS_NAME
    weights = state_dict_in(read_weights_file(path), (), path)
    network = build_wan(_part(weights, NETWORK_PREFIX), config=config.network)
    vae = PocketVae(config.network.in_dim)
    vocabulary = Vocabulary(config.network.text_dim, text_len=config.rollout.text_len)
    for module, prefix in ((vae, VAE_PREFIX), (vocabulary, VOCABULARY_PREFIX)):
        part = _part(weights, prefix)
        check_keys(module.state_dict(), part)
        module.load_state_dict(part)
        module.eval().requires_grad_(False).to(device)
    return WanFamily(
        network.to(device=device, dtype=dtype),
        override(config.rollout),
        name="pocket",
        codec=PocketCodec(vae, frames_per_second=config.frames_per_second),
        prompt_encoder=vocabulary,
    )


def _read_config(path: Path) -> PocketConfig:
    try:
        return msgspec.json.decode(path.read_bytes(), type=PocketConfig)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: install qvg-engine again") from error
    except (msgspec.DecodeError, OSError) as error:
        raise CheckpointError(f"{path} is not a config of the embedded model: {error}") from error


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }
