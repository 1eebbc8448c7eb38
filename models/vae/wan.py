"""The Wan VAE (diffusers' AutoencoderKLWan), decoded and encoded piece by piece.

Its causal convolutions look back at features of earlier frames. diffusers keeps them in lists that
its modules read and write; here the list of a video is its state, so that many videos can be
decoded in turns. Latents are those of the networks: (z - mean) / std per channel.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvg_engine.errors import CheckpointError, RequestError
from qvg_engine.kernels.device_table import send
from qvg_engine.models.family import DecoderState, Frames
from qvg_engine.models.packages import require_package
from qvg_engine.models.peak_bytes import PeakBytes
from qvg_engine.models.shards import read_json, safetensors_in
from qvg_engine.models.turns import Turns, turn
from qvg_engine.models.wan.checkpoint import check_keys
from qvg_engine.models.weights import Weights, fill_module

_WEIGHTS_STEM = "diffusion_pytorch_model"
ORIGINAL_NAME = "Wan2.1_VAE.pth"

_REPEAT = "Rep"
_ORIGINAL_ENTRANCE = "encoder.conv1.weight"


class WanVaeCodec:
    """A causal Wan VAE of any size behind the engine's codec interface.

    The first latent frame stands for one pixel frame, every other one for four.
    """

    def __init__(
        self, vae: Any, *, frames_per_second: int = 16, turns: Turns | None = None
    ) -> None:
        """`vae` is an AutoencoderKLWan; with `turns` it is on the device only while in use."""
        config = vae.config
        self.vae = vae
        self.frames_per_second = frames_per_second
        self.latent_channels = int(config.z_dim)
        self.spatial_factor: int = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        self.temporal_factor: int = 2 ** sum(config.temperal_downsample)
        self._turns = turns
        parameter = next(vae.parameters())
        self._dtype = parameter.dtype
        self._device = parameter.device if turns is None else turns.device
        self._mean = self._per_channel(config.latents_mean)
        self._std = self._per_channel(config.latents_std)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(parameter.nbytes for parameter in self.vae.parameters())

    def latent_frames(self, num_frames: int) -> int:
        return 1 - (-(num_frames - 1) // self.temporal_factor)

    def pixel_frames(self, latent_frames: int) -> int:
        return 1 + (latent_frames - 1) * self.temporal_factor

    def state_bytes(self, height: int, width: int) -> int:
        """Bytes of a state after two latent frames, when it has reached its size."""
        return self._sizes(height, width)[0]

    def decode_bytes(self, height: int, width: int) -> int:
        """Bytes that decoding a latent frame holds at its widest, beside state and weights."""
        return self._sizes(height, width)[1]

    @torch.inference_mode()
    def _sizes(self, height: int, width: int) -> tuple[int, int]:
        """Bytes of a state, and what a decode holds beside it, from a run without data."""
        with torch.device("meta"):
            model = nn.Module.to(type(self.vae).from_config(self.vae.config), self._dtype)
            latent = torch.empty(1, self.latent_channels, 1, height, width, dtype=self._dtype)
        features = _empty_features(model.decoder)
        for index in range(2):
            model.decoder(latent, feat_cache=features, feat_idx=[0], first_chunk=index == 0)
        with PeakBytes() as counted:
            model.decoder(latent, feat_cache=features, feat_idx=[0])
        state = sum(part.nbytes for part in features if isinstance(part, Tensor))
        # The new state takes the old one's place only as the decode goes on.
        return state, max(0, counted.most)

    @torch.inference_mode()
    def decode_chunk(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Frames of [F, C, h, w], a latent frame at a time: memory does not grow with F."""
        decoder = self.vae.decoder
        features = _empty_features(decoder) if state is None else _to_features(state, decoder)
        frames = []
        with turn(self._turns, self.vae):
            moments = send(latents, self._device, torch.float32).transpose(0, 1)[None]
            z = self.vae.post_quant_conv((moments * self._std + self._mean).to(self._dtype))
            for index in range(z.shape[2]):
                pixels = decoder(
                    z[:, :, index : index + 1],
                    feat_cache=features,
                    feat_idx=[0],
                    first_chunk=state is None and index == 0,
                )
                frames.append(_to_frames(_fold_patches(pixels, self.vae.config.patch_size)))
        return torch.cat(frames), _to_state(features)

    def encodable_frames(self, num_frames: int) -> int:
        return 1 + (num_frames - 1) // self.temporal_factor * self.temporal_factor

    @torch.inference_mode()
    def encode(self, frames: Frames, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents [F, C, h, w] in fp32 of frames [T, H, W, 3]: the mean of the posterior.

        With a `generator` a sample of it, drawn on the generator's device. Raises `RequestError`
        for a number of frames or a size that the compression does not divide.
        """
        self._check_frames(frames)
        encoder, step = self.vae.encoder, self.temporal_factor
        features = _empty_features(encoder)
        parts = []
        with turn(self._turns, self.vae):
            for start, stop in [(0, 1), *((i, i + step) for i in range(1, len(frames), step))]:
                pixels = torch.from_numpy(np.ascontiguousarray(frames[start:stop]))
                pixels = pixels.to(self._device).permute(3, 0, 1, 2)[None].to(self._dtype)
                pixels = _unfold_patches(pixels / 127.5 - 1, self.vae.config.patch_size)
                parts.append(encoder(pixels, feat_cache=features, feat_idx=[0]))
            moments = self.vae.quant_conv(torch.cat(parts, dim=2)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        if generator is not None:
            drawn = torch.randn(mean.shape, generator=generator, device=generator.device)
            spread = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
            mean = mean + spread * drawn.to(mean)
        latents: Tensor = ((mean - self._mean) / self._std)[0].transpose(0, 1)
        return latents

    def _per_channel(self, values: Sequence[float]) -> Tensor:
        column = torch.tensor(values, dtype=torch.float32, device=self._device)
        return column.view(1, -1, 1, 1, 1)

    def _check_frames(self, frames: Frames) -> None:
        count, height, width = frames.shape[:3]
        factor = self.spatial_factor
        if count != self.encodable_frames(max(count, 1)) or height % factor or width % factor:
            raise RequestError(
                f"frames are {count} of {width}x{height} pixels: give 1 more than a multiple of "
                f"{self.temporal_factor} frames, of a size that {factor} divides"
            )


def load_wan_vae(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    frames_per_second: int = 16,
    turns: Turns | None = None,
) -> WanVaeCodec:
    """A Wan VAE from a diffusers folder, or from a file with the original names.

    With `turns` the weights stay in host memory. Raises `CheckpointError` for files that are
    missing, broken or of another model, and `ConfigError` without diffusers.
    """
    diffusers = require_package("diffusers", what="the Wan VAE")
    weights = Weights(safetensors_in(path, _WEIGHTS_STEM) if path.is_dir() else [path])
    file_names = {name: name for name in weights.shapes}
    if _ORIGINAL_ENTRANCE in weights.shapes:
        naming = require_package("diffusers.loaders.single_file_utils", what="the Wan VAE")
        file_names = naming.convert_wan_vae_to_diffusers(file_names)
    shapes = {name: weights.shapes[file_name] for name, file_name in file_names.items()}
    settings = _read_config(path / "config.json") if path.is_dir() else _sizes(shapes, path)
    try:
        with torch.device("meta"):
            vae = diffusers.AutoencoderKLWan.from_config(settings)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no config of a Wan VAE: {error}") from error
    check_keys(vae.state_dict(), shapes)
    where = "cpu" if turns is not None and torch.device(device).type != "meta" else device
    fill_module(vae, weights, file_names, device=where, dtype=dtype)
    if turns is not None:
        turns.add(vae)
    return WanVaeCodec(vae, frames_per_second=frames_per_second, turns=turns)


def published_wan_vae(dtype: torch.dtype) -> WanVaeCodec:
    """The published VAE without weights, to plan with; `ConfigError` without diffusers."""
    diffusers = require_package("diffusers", what="the Wan VAE")
    with torch.device("meta"):
        return WanVaeCodec(nn.Module.to(diffusers.AutoencoderKLWan(), dtype))


def _read_config(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    name = settings.get("_class_name")
    if name != "AutoencoderKLWan":
        raise CheckpointError(f"{path} is a config of {name}, not of AutoencoderKLWan")
    return settings


def _sizes(shapes: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """What the original file does not say but by its shapes."""
    try:
        return {
            "base_dim": shapes["encoder.conv_in.weight"].shape[0],
            "z_dim": shapes["post_quant_conv.weight"].shape[0],
        }
    except KeyError as error:
        raise CheckpointError(f"{path} is not a Wan VAE: {error} is missing") from error


def _empty_features(half: Any) -> list[Any]:
    """diffusers' feature cache of an encoder or decoder before its first frame."""
    modules = require_package("diffusers.models.autoencoders.autoencoder_kl_wan", what="the VAE")
    return [None] * sum(isinstance(part, modules.WanCausalConv3d) for part in half.modules())


def _to_state(features: list[Any]) -> DecoderState:
    """The entries in use; where diffusers keeps a word instead of features, so do we no rows."""
    used = list(takewhile(lambda part: part is not None, features))
    assert all(part is None for part in features[len(used) :]), "a feature cache with gaps"
    return tuple(part if isinstance(part, Tensor) else torch.empty(0) for part in used)


def _to_features(state: tuple[Tensor, ...], half: Any) -> list[Any]:
    features = _empty_features(half)
    features[: len(state)] = [part if part.numel() else _REPEAT for part in state]
    return features


def _to_frames(pixels: Tensor) -> Tensor:
    """[1, 3, T, H, W] in -1..1 to uint8 [T, H, W, 3]."""
    scaled = ((pixels[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 3, 0)


def _patches(name: str) -> Callable[..., Tensor]:
    module = require_package("diffusers.models.autoencoders.autoencoder_kl_wan", what="the VAE")
    function: Callable[..., Tensor] = getattr(module, name)
    return function


def _fold_patches(pixels: Tensor, patch_size: int | None) -> Tensor:
    return pixels if patch_size is None else _patches("unpatchify")(pixels, patch_size)


def _unfold_patches(pixels: Tensor, patch_size: int | None) -> Tensor:
    return pixels if patch_size is None else _patches("patchify")(pixels, patch_size)
