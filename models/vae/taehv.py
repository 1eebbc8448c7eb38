"""TAEHV, the light VAE: 2-D convolutions that remember one frame (madebyollin/taehv).

It decodes a latent frame into four pixel frames with a few layers, at a fraction of the time and
memory of the VAE whose latents it reads; frames are a preview of what that VAE makes. It takes the
networks' latents as they are. The first three frames of a video have no counterpart in the other
VAE and are dropped.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.errors import CheckpointError, RequestError
from qvg_engine.kernels.device_table import send
from qvg_engine.models.family import DecoderState, Frames
from qvg_engine.models.turns import Turns, turn
from qvg_engine.models.wan.checkpoint import check_keys
from qvg_engine.models.weights import Weights, fill_module

TEMPORAL_FACTOR = 4
_WIDTHS = (256, 128, 64, 64)
_ENCODER_WIDTH = 64


class Squash(nn.Module):
    """Bounds latents softly to -3..3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Remembering(nn.Module):
    """Three convolutions over a frame's features and those of the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        """x [T, c, h, w] after the frame `before` [1, c, h, w]; None stands for zeros."""
        first = torch.zeros_like(x[:1]) if before is None else before
        earlier = torch.cat([first, x[:-1]])
        return functional.relu(self.conv(torch.cat([x, earlier], dim=1)) + x)


class PoolFrames(nn.Module):
    """Several frames' features to one."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width * frames, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.conv(x.reshape(-1, self.frames * x.shape[1], *x.shape[2:]))
        return pooled


class GrowFrames(nn.Module):
    """One frame's features to several frames'."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grown: Tensor = self.conv(x)
        return grown.reshape(-1, *x.shape[1:])


class Taehv(nn.Module):
    """Encoder and decoder under their published names."""

    def __init__(self, latent_channels: int, patch_size: int) -> None:
        super().__init__()
        colors = 3 * patch_size**2
        self.patch_size = patch_size
        self.encoder = nn.Sequential(*_encoder_layers(colors, latent_channels))
        self.decoder = nn.Sequential(*_decoder_layers(colors, latent_channels))


def _encoder_layers(colors: int, latent_channels: int) -> list[nn.Module]:
    width = _ENCODER_WIDTH
    layers: list[nn.Module] = [nn.Conv2d(colors, width, 3, padding=1), nn.ReLU()]
    for frames in (2, 2, 1):
        layers += [
            PoolFrames(width, frames),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            *(Remembering(width) for _ in range(3)),
        ]
    return [*layers, nn.Conv2d(width, latent_channels, 3, padding=1)]


def _decoder_layers(colors: int, latent_channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = [
        Squash(),
        nn.Conv2d(latent_channels, _WIDTHS[0], 3, padding=1),
        nn.ReLU(),
    ]
    for width, narrower, frames in zip(_WIDTHS, _WIDTHS[1:], (1, 2, 2), strict=False):
        layers += [
            *(Remembering(width) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            GrowFrames(width, frames),
            nn.Conv2d(width, narrower, 3, padding=1, bias=False),
        ]
    return [*layers, nn.ReLU(), nn.Conv2d(_WIDTHS[-1], colors, 3, padding=1)]


def run_layers(
    layers: nn.Sequential, x: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Frames [T, c, h, w] through the layers, and what they remember: the last frame of each."""
    before = iter(state or ())
    after = []
    for layer in layers:
        if isinstance(layer, Remembering):
            seen = x[-1:]
            x = layer(x, next(before, None))
            after.append(seen)
        else:
            x = layer(x)
    return x, tuple(after)


class TaehvCodec:
    """TAEHV behind the engine's codec interface."""

    def __init__(
        self, vae: Taehv, *, frames_per_second: int = 16, turns: Turns | None = None
    ) -> None:
        self.vae = vae
        self.frames_per_second = frames_per_second
        weight = vae.decoder[1].weight
        assert isinstance(weight, Tensor)
        self.latent_channels = weight.shape[1]
        self.spatial_factor = 8 * vae.patch_size
        self._turns = turns
        self._dtype = weight.dtype
        self._device = weight.device if turns is None else turns.device

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(parameter.nbytes for parameter in self.vae.parameters())

    def latent_frames(self, num_frames: int) -> int:
        return 1 - (-(num_frames - 1) // TEMPORAL_FACTOR)

    def pixel_frames(self, latent_frames: int) -> int:
        return 1 + (latent_frames - 1) * TEMPORAL_FACTOR

    def encodable_frames(self, num_frames: int) -> int:
        return 1 + (num_frames - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR

    def state_bytes(self, height: int, width: int) -> int:
        """Three frames of features at each of three resolutions."""
        per_sample = sum(3 * channels * 4**stage for stage, channels in enumerate(_WIDTHS[:3]))
        return int(per_sample * height * width * self._dtype.itemsize)

    @torch.inference_mode()
    def decode_chunk(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Frames of [F, C, h, w], a latent frame at a time: memory does not grow with F."""
        parts = []
        with turn(self._turns, self.vae):
            for latent in send(latents, self._device, self._dtype).split(1):
                x, after = run_layers(self.vae.decoder, latent, state)
                pixels = functional.pixel_shuffle(x, self.vae.patch_size)
                parts.append(_to_frames(pixels if state else pixels[TEMPORAL_FACTOR - 1 :]))
                state = after
        return torch.cat(parts), state

    @torch.inference_mode()
    def encode(self, frames: Frames) -> Tensor:
        """Latents [F, C, h, w] in fp32 of frames [T, H, W, 3], the last of them repeated.

        Raises `RequestError` for a number of frames or a size that the factors do not divide.
        """
        count, height, width = frames.shape[:3]
        factor = self.spatial_factor
        if count != self.encodable_frames(max(1, count)) or height % factor or width % factor:
            raise RequestError(
                f"frames are {count} of {width}x{height} pixels: give 1 more than a multiple of "
                f"{TEMPORAL_FACTOR} frames, of a size that {factor} divides"
            )
        padded = np.concatenate([frames, np.repeat(frames[-1:], TEMPORAL_FACTOR - 1, axis=0)])
        state: tuple[Tensor, ...] | None = None
        parts = []
        with turn(self._turns, self.vae):
            for start in range(0, len(padded), TEMPORAL_FACTOR):
                pixels = torch.from_numpy(padded[start : start + TEMPORAL_FACTOR])
                x = pixels.to(self._device).permute(0, 3, 1, 2).to(self._dtype) / 255
                x = functional.pixel_unshuffle(x, self.vae.patch_size)
                latent, state = run_layers(self.vae.encoder, x, state)
                parts.append(latent.float())
        return torch.cat(parts)


def load_taehv(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    frames_per_second: int = 16,
    turns: Turns | None = None,
) -> TaehvCodec:
    """TAEHV from a published file (taew2_1, taew2_2, taehv1_5), `.pth` or safetensors.

    Raises `CheckpointError` for files that are missing, broken or of another model.
    """
    weights = Weights([path])
    try:
        latent_channels = weights.shapes["decoder.1.weight"].shape[1]
        patch_size = round((weights.shapes["decoder.22.weight"].shape[0] / 3) ** 0.5)
    except KeyError as error:
        raise CheckpointError(f"{path} is not TAEHV: {error} is missing") from error
    with torch.device("meta"):
        vae = Taehv(latent_channels, patch_size)
    shapes = dict(weights.shapes)
    grown = {
        name: value.shape[0]
        for name, value in vae.state_dict().items()
        if name.startswith("decoder.") and name.endswith(".conv.weight") and name in shapes
    }
    for name, rows in grown.items():
        shapes[name] = shapes[name][-rows:]
    check_keys(vae.state_dict(), shapes)
    where = "cpu" if turns is not None and torch.device(device).type != "meta" else device
    # Where a file can grow a frame into more frames than are asked for, the last of them counts.
    fill_module(
        vae,
        weights,
        {name: name for name in shapes},
        device=where,
        dtype=dtype,
        change=lambda name, value: value[-grown[name] :] if name in grown else value,
    )
    if turns is not None:
        turns.add(vae)
    return TaehvCodec(vae, frames_per_second=frames_per_second, turns=turns)


def _to_frames(pixels: Tensor) -> Tensor:
    """[T, 3, H, W] in 0..1 to uint8 [T, H, W, 3]."""
    scaled = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1)
