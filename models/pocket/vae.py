"""The embedded model's causal video VAE: 4 frames and 8x8 pixels to one latent sample.

Every latent frame stands for exactly four pixel frames, the first included. The encoder looks at
those four alone; the decoder also looks back at what it computed one latent frame before, which
is the state that a stream carries from chunk to chunk. Decoding chunk by chunk therefore equals
decoding everything at once. All layers are convolutions, so any height and width that 8 divides
will do.

Shapes: B videos, F latent frames, C latent channels, h x w latent samples, H = 8 h, W = 8 w.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.errors import RequestError

DecoderState = tuple[Tensor, ...]
"""What a stream's decoder remembers: its inner features of the last latent frame."""

_WIDE, _MIDDLE, _NARROW = 96, 80, 48


class Residual(nn.Module):
    """x + two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.second(functional.relu(self.first(functional.relu(x))))
        return x + inner


class LookBack(nn.Module):
    """x + a 3x3 convolution over the features of this latent frame and of the one before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, F, c, h, w] and the state [B, c, h, w] -> the same shapes."""
        earlier = torch.cat([before[:, None], x[:, :-1]], dim=1)
        pairs = torch.cat([earlier, x], dim=2).flatten(0, 1)
        return x + self.mix(functional.relu(pairs)).view_as(x), x[:, -1]


class Encoder(nn.Module):
    """Four frames of each latent frame, folded into channels, to latents."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 64, 4, stride=2, padding=1),
            Residual(64),
            nn.Conv2d(64, _WIDE, 4, stride=2, padding=1),
            Residual(_WIDE),
            nn.ReLU(),
            nn.Conv2d(_WIDE, latent_channels, 3, padding=1),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """[N, 12, H, W] in -1..1 -> [N, C, h, w]."""
        latents: Tensor = self.layers(frames)
        return latents


class Decoder(nn.Module):
    """Latents to four frames each, with a look back at two resolutions."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(latent_channels, _WIDE, 3, padding=1)
        self.look_wide = LookBack(_WIDE)
        self.wide = nn.Sequential(
            Residual(_WIDE), Residual(_WIDE), nn.ReLU(), nn.Conv2d(_WIDE, 4 * _MIDDLE, 1)
        )
        self.look_middle = LookBack(_MIDDLE)
        self.middle = nn.Sequential(
            Residual(_MIDDLE), nn.ReLU(), nn.Conv2d(_MIDDLE, 4 * _NARROW, 1), nn.PixelShuffle(2)
        )
        self.narrow = nn.Sequential(
            Residual(_NARROW),
            nn.ReLU(),
            nn.Conv2d(_NARROW, 48, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """[B, F, C, h, w] -> frames [B, F, 12, H, W] in -1..1, and the state after them."""
        shape = latents.shape[:2]
        x = _by_video(self.enter(latents.flatten(0, 1)), shape)
        x, wide_state = self.look_wide(x, state[0])
        x = _by_video(functional.pixel_shuffle(self.wide(x.flatten(0, 1)), 2), shape)
        x, middle_state = self.look_middle(x, state[1])
        frames = _by_video(self.narrow(self.middle(x.flatten(0, 1))), shape)
        return frames, (wide_state, middle_state)


def _by_video(x: Tensor, shape: torch.Size) -> Tensor:
    """[B F, c, h, w] -> [B, F, c, h, w]."""
    return x.view(*shape, *x.shape[1:])


class PocketVae(nn.Module):
    """Turns frames into normalised latents and back, chunk by chunk.

    Latents have zero mean and unit variance per channel over the training clips; the statistics
    are part of the weights.
    """

    temporal_factor: Final = 4
    spatial_factor: Final = 8

    def __init__(self, latent_channels: int = 16) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.encoder = Encoder(latent_channels)
        self.normalize = nn.BatchNorm2d(latent_channels, affine=False, momentum=0.02)
        self.decoder = Decoder(latent_channels)

    def initial_state(self, height: int, width: int, *, batch: int = 1) -> DecoderState:
        """The decoder's state before the first latent frame of height x width samples."""
        parameter = self.decoder.enter.weight
        return (
            parameter.new_zeros(batch, _WIDE, height, width),
            parameter.new_zeros(batch, _MIDDLE, 2 * height, 2 * width),
        )

    def state_bytes(self, height: int, width: int) -> int:
        """Bytes of one stream's decoder state at height x width latent samples."""
        samples = (_WIDE + 4 * _MIDDLE) * height * width
        return samples * self.decoder.enter.weight.element_size()

    def encode(self, frames: Tensor) -> Tensor:
        """[B, 4 F, 3, H, W] in -1..1 -> normalised latents [B, F, C, h, w]."""
        batch, count = frames.shape[:2]
        folded = frames.reshape(-1, 12, *frames.shape[3:])
        latents: Tensor = self.normalize(self.encoder(folded))
        return latents.view(batch, count // self.temporal_factor, *latents.shape[1:])

    def decode(
        self, latents: Tensor, state: DecoderState | None = None
    ) -> tuple[Tensor, DecoderState]:
        """Normalised latents [B, F, C, h, w] -> frames [B, 4 F, 3, H, W] in -1..1, the state."""
        batch, count, _, height, width = latents.shape
        state = state or self.initial_state(height, width, batch=batch)
        frames, state = self.decoder(latents, state)
        return frames.reshape(batch, 4 * count, 3, *frames.shape[3:]), state

    @torch.inference_mode()
    def encode_chunk(self, frames: Tensor, state: tuple[()] = ()) -> tuple[Tensor, tuple[()]]:
        """Frames uint8 [4 F, H, W, 3] -> latents [F, C, h, w]; the encoder carries no state.

        Raises `RequestError` for sizes that the factors do not divide.
        """
        count, height, width, _ = frames.shape
        if count % self.temporal_factor or height % 8 or width % 8:
            raise RequestError(
                f"frames are {count} x {height} x {width}: give a multiple of "
                f"{self.temporal_factor} frames of a height and width that 8 divides"
            )
        pixels = frames.to(self.decoder.enter.weight.device).permute(0, 3, 1, 2)
        scaled = pixels.to(self.decoder.enter.weight.dtype) / 127.5 - 1
        return self.encode(scaled[None])[0], state

    @torch.inference_mode()
    def decode_chunk(
        self, latents: Tensor, state: DecoderState | None = None
    ) -> tuple[Tensor, DecoderState]:
        """Latents [F, C, h, w] -> frames uint8 [4 F, H, W, 3], and the state for the next chunk.

        `None` is the state before a stream's first chunk.
        """
        frames, state = self.decode(latents.to(self.decoder.enter.weight.dtype)[None], state)
        pixels = ((frames[0].permute(0, 2, 3, 1) + 1) * 127.5).round()
        return pixels.clamp(0, 255).to(torch.uint8), state
