"""The frames that a run's videos start from: an image, or the end of a video."""

import math
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.video.reader import probe_video, read_video

_FULL_HISTORY_LATENTS = 18
"""Latent frames of context for a model without a window, of the 21 that such are trained on."""


class Start(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What videos start from: `frames` uint8 [T, H, W, 3] and their `latents` [F, C, h, w]."""

    frames: NDArray[np.uint8]
    latents: Tensor


def read_start(path: Path, family: ModelFamily) -> Start:
    """Read an image or a video, bring it to the model's size and rate, and encode it.

    Of a video the last frames are taken: as many as the family's `context_frames` say, or as the
    model's window holds beside a chunk. What is too wide or too high is cut at both sides alike.
    Raises RequestError for a file that cannot be read and ConfigError for a model without a VAE.
    """
    codec = family.codec
    if codec is None:
        raise ConfigError(f"model {family.name!r} has no VAE here: it cannot start from {path}")
    settings = family.settings
    window = settings.window_frames
    latents = _FULL_HISTORY_LATENTS
    if window is not None:
        latents = window - settings.frames_per_chunk
    latents = getattr(family, "context_frames", latents)
    most = codec.pixel_frames(max(1, latents))
    rate = probe_video(path).frames_per_second
    step = rate / codec.frames_per_second if rate > codec.frames_per_second else 1.0
    frames = read_video(path, last=math.ceil(most * step))
    # Backwards from the last frame, which the new video follows.
    kept = [len(frames) - 1 - round(i * step) for i in range(most)]
    frames = frames[[index for index in reversed(kept) if index >= 0]]
    if not codec.encodable_frames(len(frames)):
        still = codec.pixel_frames(1) - len(frames)
        frames = np.concatenate([frames, np.repeat(frames[-1:], still, axis=0)])
    frames = frames[len(frames) - codec.encodable_frames(len(frames)) :]
    factor = codec.spatial_factor
    height, width = (size * factor for size in settings.latent_shape[1:])
    fitted = np.stack([fit_frame(frame, height=height, width=width) for frame in frames])
    return Start(frames=fitted, latents=codec.encode(fitted).float().cpu())


def fit_frame(frame: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """Resize [H, W, 3] to cover height x width pixels, and cut off what sticks out."""
    scale = max(height / frame.shape[0], width / frame.shape[1])
    kept_height = min(frame.shape[0], max(1, round(height / scale)))
    kept_width = min(frame.shape[1], max(1, round(width / scale)))
    top, left = (frame.shape[0] - kept_height) // 2, (frame.shape[1] - kept_width) // 2
    cut = np.ascontiguousarray(frame[top : top + kept_height, left : left + kept_width])
    if cut.shape[:2] == (height, width):
        return cut
    pixels = torch.from_numpy(cut).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(
        pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    rounded = resized[0].round().clamp(0, 255).to(torch.uint8)
    fitted: NDArray[np.uint8] = rounded.permute(1, 2, 0).contiguous().numpy()
    return fitted
