"""Which clips, chunks and noise a training step sees, all from (seed, round)."""

from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qvg_engine.models.pocket.pool import ClipPool
from qvg_engine.models.pocket.teacher_forcing import FRAMES_PER_CHUNK, Layout

LEVELS: Final = (1.0, 0.9375, 1 / 1.2, 0.625)
"""Noise levels of the sampler's passes: the only ones that the network has to know."""

NOISE_SCALES: Final = (1.0, 0.75, 0.85, 1.0)
"""How much of a level's noise is really added in training.

The sampler adds fresh noise at every level and the network, which cannot tell it from detail,
averages most of it away: textures drawn in four passes come out at half their contrast. A network
that expects less noise than it is given takes more of it for detail.
"""

LAYOUTS: Final = (
    (0.60, Layout(batch=4, chunks=4, noisy_chunks=4, copies=2)),
    (0.18, Layout(batch=2, chunks=8, noisy_chunks=5, copies=2)),
    (0.22, Layout(batch=1, chunks=19, noisy_chunks=6, copies=2)),
)
"""How often each layout is drawn: most windows are short, some reach past a full window."""


class Batch(msgspec.Struct):
    """Chunks [B, n, 3, C, h, w] of clips, bf16, and the places of their clips in the pool."""

    chunks: Tensor
    clips: tuple[int, ...]
    layout: Layout


def pick_layout(rng: np.random.Generator) -> Layout:
    """Draw one of `LAYOUTS`."""
    weights = np.asarray([weight for weight, _ in LAYOUTS])
    return LAYOUTS[int(rng.choice(len(LAYOUTS), p=weights / weights.sum()))][1]


def draw_batch(pool: ClipPool, layout: Layout, rng: np.random.Generator) -> Batch:
    """Random windows of random clips."""
    frames = layout.chunks * FRAMES_PER_CHUNK
    clips = rng.integers(len(pool), size=layout.batch)
    firsts = rng.integers(pool.clip_latents - frames + 1, size=layout.batch)
    windows = [
        pool.window(int(clip), int(first), frames)
        for clip, first in zip(clips, firsts, strict=True)
    ]
    chunks = torch.stack(windows).unflatten(1, (-1, FRAMES_PER_CHUNK)).bfloat16()
    return Batch(chunks=chunks, clips=tuple(int(clip) for clip in clips), layout=layout)


def soil_context(chunks: Tensor) -> Tensor:
    """The clean chunks as a drifting model would leave them: noisy, smeared, leaking.

    White noise, smooth noise that is the same for the frames of a chunk, and a little of another
    clip, each at a random strength per clip.
    """
    batch, count, _, channels, height, width = chunks.shape

    def strength(most: float) -> Tensor:
        return (most * torch.rand(batch, 1, 1, 1, 1, 1) * torch.rand(batch, count, 1, 1, 1, 1)).to(
            chunks.dtype
        )

    smooth = functional.interpolate(
        torch.randn(batch * count, channels, 3, 3), size=(height, width), mode="bilinear"
    ).view(batch, count, 1, channels, height, width)
    soiled = chunks + strength(0.25) * torch.randn(chunks.shape, dtype=chunks.dtype)
    soiled = soiled + strength(0.25) * smooth.to(chunks.dtype)
    other = chunks.roll(1, dims=0) if batch > 1 else chunks.flip(1)
    return torch.lerp(soiled, other, strength(0.15))


def add_noise(chunks: Tensor, copies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks [B, r, ...] -> m noisy copies [m, B, r, ...], their level indices and flow targets.

    The copies of one chunk are at different levels.
    """
    batch, count = chunks.shape[:2]
    order = torch.rand(batch, count, len(LEVELS)).argsort(dim=-1)
    indices = order[..., :copies].permute(2, 0, 1)
    tail = (1,) * (chunks.ndim - 2)
    level = torch.tensor(LEVELS)[indices].view(*indices.shape, *tail)
    scale = torch.tensor(NOISE_SCALES)[indices].view(*indices.shape, *tail)
    clean = chunks.float()[None]
    noise = torch.randn(copies, *chunks.shape) * scale
    noisy = (1 - level) * clean + level * noise
    return noisy.to(chunks.dtype), indices, noise - clean
