"""The VAE of HunyuanVideo-1.5 (diffusers' AutoencoderKLHunyuanVideo15), decoded piece by piece.

diffusers decodes a latent video in one go. Here its modules run on one latent frame after another,
and what they need of earlier frames is the video's state: the last two frames before each causal
convolution, and K and V of the middle block's attention, which looks at all earlier latent frames.
So the state grows with the video, by 2 x height x width x channels a latent frame (6.4 MB in bf16
at 832x480), unless `attention_frames` bounds how far that attention looks back.

Latents are those of the networks, z * scaling_factor; this VAE has no shift.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.errors import CheckpointError, ConfigError, RequestError
from qvg_engine.kernels.device_table import send
from qvg_engine.models.family import DecoderState, Frames
from qvg_engine.models.packages import require_package
from qvg_engine.models.peak_bytes import PeakBytes
from qvg_engine.models.shards import read_json, safetensors_in
from qvg_engine.models.turns import Turns, turn
from qvg_engine.models.wan.checkpoint import check_keys
from qvg_engine.models.weights import Weights, fill_module

CLASS_NAME = "AutoencoderKLHunyuanVideo15"
FRAMES_PER_SECOND = 24
PLANNED_FRAMES = 32
"""Latent frames for which `state_bytes` counts: 125 pixel frames, the published rollout."""

_BASES = "HunyuanVideo-1.5*"
_WEIGHTS_STEM = "diffusion_pytorch_model"


class VideoMemory:
    """What the decoder keeps of one video, in the order in which its layers ask for it.

    Every layer takes its part and gives back the next one, so that old parts go as new ones come.
    """

    def __init__(self, state: DecoderState, attention_frames: int | None = None) -> None:
        self.is_first = state is None
        self.attention_frames = attention_frames
        self._parts = deque(state or ())

    def take(self) -> Tensor | None:
        """The next layer's part; None at a video's first latent frame."""
        return None if self.is_first else self._parts.popleft()

    def keep(self, part: Tensor) -> None:
        self._parts.append(part)

    @property
    def state(self) -> tuple[Tensor, ...]:
        """All parts, between two latent frames."""
        return tuple(self._parts)


def decode_frame(decoder: Any, z: Tensor, memory: VideoMemory) -> Tensor:
    """Pixels [1, 3, T, H, W] of the latent frame z [1, C, 1, h, w]; T is 1 for a video's first."""
    assert z.shape[2] == 1, z.shape
    x = _convolve(decoder.conv_in, z, memory) + z.repeat_interleave(decoder.repeat, dim=1)
    middle = decoder.mid_block
    x = _refine(middle.resnets[0], x, memory)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            x = _attend(attention, x, memory)
        x = _refine(resnet, x, memory)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _refine(resnet, x, memory)
        for upsampler in block.upsamplers or ():
            x = _enlarge(upsampler, x, memory)
    pixels = _convolve(decoder.conv_out, decoder.conv_act(decoder.norm_out(x)), memory)
    memory.is_first = False
    return pixels


def _convolve(conv: Any, x: Tensor, memory: VideoMemory) -> Tensor:
    """A causal convolution; before its first frame a video stands still."""
    *space, look_back, _ = conv.time_causal_padding
    before = memory.take()
    if before is None:
        before = x[:, :, :1].expand(-1, -1, look_back, -1, -1)
    x = torch.cat([before, x], dim=2)
    # A copy, as a view would hold on to all of x.
    memory.keep(x[:, :, x.shape[2] - look_back :].clone())
    convolved: Tensor = conv.conv(functional.pad(x, (*space, 0, 0), mode=conv.pad_mode))
    return convolved


def _refine(block: Any, x: Tensor, memory: VideoMemory) -> Tensor:
    """A residual block."""
    change = _convolve(block.conv1, block.nonlinearity(block.norm1(x)), memory)
    change = _convolve(block.conv2, block.nonlinearity(block.norm2(change)), memory)
    shortcut: Tensor = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return change + shortcut


def _attend(block: Any, x: Tensor, memory: VideoMemory) -> Tensor:
    """One latent frame looks at itself and at those before; so no mask is needed."""
    normed = block.norm(x)
    query, key, value = (
        part(normed).flatten(2).transpose(1, 2) for part in (block.to_q, block.to_k, block.to_v)
    )
    pair, before = torch.stack([key, value]), memory.take()
    if before is not None:
        pair = torch.cat([before, pair], dim=2)
    if memory.attention_frames is not None:
        most = memory.attention_frames * query.shape[1]
        if pair.shape[2] > most:
            pair = pair[:, :, pair.shape[2] - most :].clone()
    memory.keep(pair)
    seen = functional.scaled_dot_product_attention(query[:, None], pair[:1], pair[1:])
    attended: Tensor = block.proj_out(seen[:, 0].transpose(1, 2).reshape(x.shape))
    return attended + x


def _enlarge(block: Any, x: Tensor, memory: VideoMemory) -> Tensor:
    """Twice the height and width from channels and, but for the first latent, twice the frames."""
    change, to_pixels = _convolve(block.conv, x, memory), block._dcae_upsample_rearrange
    if not block.add_temporal_upsample:
        repeated = x.repeat_interleave(block.repeats, dim=1)
        both: Tensor = to_pixels(change, r1=1) + to_pixels(repeated, r1=1)
        return both
    if memory.is_first:
        # Channels that would be its second frame are left out.
        shortcut = to_pixels(x, r1=1).repeat_interleave(block.repeats // 2, dim=1)
        first: Tensor = to_pixels(change, r1=1).chunk(2, dim=1)[0] + shortcut
        return first
    later: Tensor = to_pixels(x, r1=2).repeat_interleave(block.repeats, dim=1)
    later = later + to_pixels(change, r1=2)
    return later


class HunyuanVaeCodec:
    """The VAE of HunyuanVideo-1.5 behind the engine's codec interface.

    The first latent frame stands for one pixel frame, every other one for four. Its states grow:
    see `GrowingCodec`.
    """

    def __init__(
        self,
        vae: Any,
        *,
        frames_per_second: int = FRAMES_PER_SECOND,
        attention_frames: int | None = None,
        turns: Turns | None = None,
    ) -> None:
        """`vae` is an AutoencoderKLHunyuanVideo15; with `turns` it is on the device while in use.

        `attention_frames` is how many latent frames, its own among them, a latent frame attends
        to. None is all, as in one decode of the whole video; a bound keeps the state from growing,
        and frames then differ. 1 is what WorldPlay's authors do, who keep no K and V. Raises
        `ConfigError` for less than 1.
        """
        if attention_frames is not None and attention_frames < 1:
            raise ConfigError(
                f"attention_frames is {attention_frames}: give at least 1, or None for all"
            )
        config = vae.config
        self.vae = vae
        self.frames_per_second = frames_per_second
        self.attention_frames = attention_frames
        self.latent_channels = int(config.latent_channels)
        self.spatial_factor = int(config.spatial_compression_ratio)
        self.temporal_factor = int(config.temporal_compression_ratio)
        self._scale = float(config.scaling_factor)
        self._turns = turns
        parameter = next(vae.parameters())
        self._dtype = parameter.dtype
        self._device = parameter.device if turns is None else turns.device
        self._sizes = cache(self._count_sizes)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(parameter.nbytes for parameter in self.vae.parameters())

    def latent_frames(self, num_frames: int) -> int:
        return 1 - (-(num_frames - 1) // self.temporal_factor)

    def pixel_frames(self, latent_frames: int) -> int:
        return 1 + (latent_frames - 1) * self.temporal_factor

    def encodable_frames(self, num_frames: int) -> int:
        return 1 + (num_frames - 1) // self.temporal_factor * self.temporal_factor

    def state_bytes(self, height: int, width: int) -> int:
        """Bytes of a state after 32 latent frames, which is the published rollout."""
        return self.state_bytes_after(height, width, PLANNED_FRAMES)

    def state_bytes_after(self, height: int, width: int, latent_frames: int) -> int:
        """Bytes of a state after so many latent frames of a video."""
        fixed, per_frame = self._sizes(height, width)
        return fixed + per_frame * min(latent_frames, self.attention_frames or latent_frames)

    @torch.inference_mode()
    def decode_bytes(self, height: int, width: int) -> int:
        """Bytes that decoding holds at its widest, beside weights and the state before it.

        Counted at the end of the video that `state_bytes` counts.
        """
        count = min(PLANNED_FRAMES, self.attention_frames or PLANNED_FRAMES)
        decoder, z, first = self._planned(height, width)
        state = tuple(part.repeat(1, 1, count, 1) if _grows(part) else part for part in first)
        with PeakBytes() as counted:
            memory = VideoMemory(state, self.attention_frames)
            for _ in range(2):
                decode_frame(decoder, z, memory)
        return int(counted.most)

    @torch.inference_mode()
    def _count_sizes(self, height: int, width: int) -> tuple[int, int]:
        """Bytes of a state that do not grow, and those of each latent frame."""
        _, _, state = self._planned(height, width)
        grown = sum(part.nbytes for part in state if _grows(part))
        return sum(part.nbytes for part in state) - grown, grown

    def _planned(self, height: int, width: int) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
        """The decoder, a latent frame, and the state after it, all without data."""
        with torch.device("meta"):
            model = nn.Module.to(type(self.vae).from_config(self.vae.config), self._dtype)
            z = torch.empty(1, self.latent_channels, 1, height, width, dtype=self._dtype)
        memory = VideoMemory(None)
        decode_frame(model.decoder, z, memory)
        return model.decoder, z, memory.state

    @torch.inference_mode()
    def decode_chunk(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Frames of [F, C, h, w]; what is held beside the state does not grow with F."""
        memory = VideoMemory(state, self.attention_frames)
        with turn(self._turns, self.vae):
            frames = [_to_frames(pixels) for pixels in self.pixels(latents, memory)]
        return torch.cat(frames), memory.state

    def pixels(self, latents: Tensor, memory: VideoMemory) -> Iterator[Tensor]:
        """Pixels [1, 3, T, H, W] in -1..1, not clamped, of each latent frame of [F, C, h, w]."""
        z = send(latents, self._device, torch.float32).transpose(0, 1)[None] / self._scale
        for frame in z.to(self._dtype).split(1, dim=2):
            yield decode_frame(self.vae.decoder, frame, memory)

    @torch.inference_mode()
    def encode(self, frames: Frames, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents [F, C, h, w] in fp32 of frames [T, H, W, 3]: the mean of the posterior.

        With a `generator` a sample of it. All frames at once, as diffusers does it: the attention
        holds a mask of the latent tokens squared. Raises `RequestError` for a number of frames or
        a size that the compression does not divide.
        """
        self._check_frames(frames)
        with turn(self._turns, self.vae):
            pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device)
            pixels = (pixels.permute(3, 0, 1, 2)[None] / 127.5 - 1).to(self._dtype)
            (posterior,) = self.vae.encode(pixels, return_dict=False)
            z = posterior.mode() if generator is None else posterior.sample(generator)
        latents: Tensor = (z.float() * self._scale)[0].transpose(0, 1)
        return latents

    def _check_frames(self, frames: Frames) -> None:
        count, height, width = frames.shape[:3]
        factor = self.spatial_factor
        if count != self.encodable_frames(max(count, 1)) or height % factor or width % factor:
            raise RequestError(
                f"frames are {count} of {width}x{height} pixels: give 1 more than a multiple of "
                f"{self.temporal_factor} frames, of a size that {factor} divides"
            )


def _grows(part: Tensor) -> bool:
    """Whether a part of a state is K and V [2, 1, tokens, C], not frames [1, C, T, h, w]."""
    return part.ndim == 4


def find_hunyuan_vae(folders: Sequence[Path]) -> Path | None:
    """The nearest folder `vae` of this class, in `folders` or in a HunyuanVideo-1.5... of them.

    Or in one beside the last of them. What is of another class is passed over.
    """
    places = [inner for folder in folders for inner in (folder, *sorted(folder.glob(_BASES)))]
    places += sorted(folders[-1].parent.glob(_BASES)) if folders else []
    for place in places:
        config = place / "vae" / "config.json"
        if config.is_file() and read_json(config).get("_class_name") == CLASS_NAME:
            return config.parent
    return None


def load_hunyuan_vae(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    frames_per_second: int = FRAMES_PER_SECOND,
    attention_frames: int | None = None,
    turns: Turns | None = None,
) -> HunyuanVaeCodec:
    """The VAE from a folder as diffusers saves it, read tensor by tensor.

    With `turns` the weights stay in host memory. Raises `CheckpointError` for files that are
    missing, broken or of another model, and `ConfigError` without diffusers.
    """
    diffusers = require_package("diffusers", what="the VAE of HunyuanVideo-1.5")
    settings = _read_config(path)
    weights = Weights(safetensors_in(path, _WEIGHTS_STEM))
    try:
        with torch.device("meta"):
            vae = diffusers.AutoencoderKLHunyuanVideo15.from_config(settings)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no config of {CLASS_NAME}: {error}") from error
    if not 0 < vae.config.scaling_factor < math.inf:
        raise CheckpointError(
            f"{path}: scaling_factor is {vae.config.scaling_factor}: it has to be positive"
        )
    check_keys(vae.state_dict(), weights.shapes)
    where = "cpu" if turns is not None and torch.device(device).type != "meta" else device
    fill_module(vae, weights, {name: name for name in weights.shapes}, device=where, dtype=dtype)
    if turns is not None:
        turns.add(vae)
    return HunyuanVaeCodec(
        vae, frames_per_second=frames_per_second, attention_frames=attention_frames, turns=turns
    )


def published_hunyuan_vae(
    dtype: torch.dtype, attention_frames: int | None = None
) -> HunyuanVaeCodec:
    """The published VAE without weights, to plan with; `ConfigError` without diffusers."""
    diffusers = require_package("diffusers", what="the VAE of HunyuanVideo-1.5")
    with torch.device("meta"):
        vae = nn.Module.to(diffusers.AutoencoderKLHunyuanVideo15(), dtype)
    return HunyuanVaeCodec(vae, attention_frames=attention_frames)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json: give the folder vae of HunyuanVideo-1.5 as diffusers "
            "saves it"
        )
    settings = read_json(path)
    if settings.get("_class_name") != CLASS_NAME:
        raise CheckpointError(
            f"{path} is a config of {settings.get('_class_name')}, not of {CLASS_NAME}: give the "
            "folder vae of HunyuanVideo-1.5 as diffusers saves it"
        )
    return settings


def _to_frames(pixels: Tensor) -> Tensor:
    """[1, 3, T, H, W] in -1..1 to uint8 [T, H, W, 3]."""
    scaled = ((pixels[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 3, 0)
