"""Which clips, chunks and noise a training step sees, all from (seed, round)."""

from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qvg_engine.models.pocket.clips import FLAT_RGB, GROUND_RGB, STUMBLE_LATENTS, Scene
from qvg_engine.models.pocket.pool import ClipPool
from qvg_engine.models.pocket.teacher_forcing import FRAMES_PER_CHUNK, Layout

TIMESTEPS: Final = (1000.0, 750.0, 500.0, 250.0, 80.0)
SHIFT: Final = 5.0
LEVELS: Final = tuple(SHIFT * t / 1000 / (1 + (SHIFT - 1) * t / 1000) for t in TIMESTEPS)
"""Noise levels of the sampler's passes: the only ones that the network has to know."""

SHAPE_WEIGHT: Final = 2.5
GROUND_WEIGHT: Final = 0.6
USUAL_CONTRAST: Final = 185.0
"""Distance in RGB between shape and ground at which a shape has no extra weight."""
MOST_CONTRAST_WEIGHT: Final = 3.0
LATENT_PIXELS: Final = 8
"""Pixels of height and width under one latent sample."""

NOISE_SCALES: Final = (1.0, 0.75, 0.85, 1.0, 1.0)
"""How much of a level's noise is really added in training.

The sampler adds fresh noise at every level and the network, which cannot tell it from detail,
averages most of it away: textures drawn in four passes come out at half their contrast. A network
that expects less noise than it is given takes more of it for detail.
"""

LAYOUTS: Final = (
    (0.30, 0.25, Layout(batch=12, chunks=1, noisy_chunks=1, copies=2)),
    (0.30, 0.10, Layout(batch=6, chunks=2, noisy_chunks=2, copies=2)),
    (0.30, 0.45, Layout(batch=3, chunks=4, noisy_chunks=4, copies=2)),
    (0.10, 0.13, Layout(batch=1, chunks=9, noisy_chunks=6, copies=2)),
    (0.05, 0.07, Layout(batch=1, chunks=19, noisy_chunks=6, copies=2)),
)
"""How often each layout is drawn, at the start and at the end of a training.

First chunks alone are where text becomes a picture, and cost little. Of the rest, short windows
come first, where motion is learned, and windows that reach past the full one in the end, where
memory is.
"""


LONG_LAYOUTS: Final = (
    (0.10, 0.10, Layout(batch=12, chunks=1, noisy_chunks=1, copies=2)),
    (0.10, 0.10, Layout(batch=6, chunks=2, noisy_chunks=2, copies=2)),
    (0.25, 0.25, Layout(batch=3, chunks=4, noisy_chunks=4, copies=2)),
    (0.20, 0.20, Layout(batch=1, chunks=9, noisy_chunks=6, copies=2)),
    (0.35, 0.35, Layout(batch=1, chunks=19, noisy_chunks=6, copies=2)),
)
"""The mixture of a last training on full windows, which most of a long video is made with."""

STUMBLING_SHARE: Final = 0.5
"""How many of the clips with context have a camera that stumbles."""


class Batch(msgspec.Struct):
    """Chunks [B, n, 3, C, h, w] of clips, bf16, and the places of their clips in the pool.

    `on_pace` [B, n] says where the camera moves as it should. `tracks` [B, n, 3, 3] is the shape's
    x, y and radius in pixels, `shape_weights` [B] what `contrast_weight` says of each clip.
    """

    chunks: Tensor
    on_pace: Tensor
    tracks: Tensor
    shape_weights: Tensor
    clips: tuple[int, ...]
    layout: Layout


def pick_layout(rng: np.random.Generator, *, progress: float, long_windows: bool = False) -> Layout:
    """Draw one of `LAYOUTS`, or `LONG_LAYOUTS`, at a part, 0 to 1, of the training."""
    layouts = LONG_LAYOUTS if long_windows else LAYOUTS
    weights = np.asarray([(1 - progress) * start + progress * end for start, end, _ in layouts])
    return layouts[int(rng.choice(len(layouts), p=weights / weights.sum()))][2]


def draw_batch(
    pool: ClipPool, layout: Layout, rng: np.random.Generator, *, favour: str | None = None
) -> Batch:
    """Random windows of random clips.

    A direction in `favour` is drawn more than twice as often as the others are.
    """
    frames = layout.chunks * FRAMES_PER_CHUNK
    stumbling = rng.random(layout.batch) < (STUMBLING_SHARE if layout.chunks > 1 else 0.0)
    clips = rng.integers(len(pool) // 2, size=layout.batch) * 2 + stumbling
    if favour is not None:
        again = rng.integers(len(pool) // 2, size=layout.batch) * 2 + stumbling
        favoured = [pool.scene(clip).direction == favour for clip in clips.tolist()]
        clips = np.where(favoured, clips, again)
    firsts = rng.integers(pool.clip_latents - frames + 1, size=layout.batch)
    firsts = np.where(stumbling, firsts // STUMBLE_LATENTS * STUMBLE_LATENTS, firsts)
    places = list(zip(clips.tolist(), firsts.tolist(), strict=True))
    latents = torch.stack([pool.window(clip, first, frames) for clip, first in places])
    tracks = np.stack([pool.shape_track(clip, first, frames) for clip, first in places])
    on_pace = np.stack([pool.on_pace(clip, first, frames) for clip, first in places])
    chunked = (layout.batch, -1, FRAMES_PER_CHUNK)
    return Batch(
        chunks=latents.bfloat16().view(*chunked, *latents.shape[2:]),
        on_pace=torch.from_numpy(on_pace).view(*chunked).all(dim=2),
        tracks=torch.from_numpy(tracks).float().view(*chunked, 3),
        shape_weights=torch.tensor([contrast_weight(pool.scene(clip)) for clip, _ in places]),
        clips=tuple(clips.tolist()),
        layout=layout,
    )


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


def token_weights(batch: Batch) -> Tensor:
    """How much the error of each latent sample counts, [B, r, 1, 3, h, w].

    About one on average where the camera keeps its pace, and zero where it does not: a camera that
    has lost its pace is what the network may find in its context, never what it should draw.

    The shape covers a fifth of the samples but is most of what a prompt is about; without more
    weight it is learned last and lost first.
    """
    tracks = batch.tracks[:, -batch.layout.noisy_chunks :]
    x, y, radius = tracks[..., None, None].unbind(dim=3)
    height, width = batch.chunks.shape[-2:]
    rows = (torch.arange(height) + 0.5)[:, None] * LATENT_PIXELS
    columns = (torch.arange(width) + 0.5)[None, :] * LATENT_PIXELS
    reach = radius + LATENT_PIXELS / 3
    near = ((rows - y).abs() < reach) & ((columns - x).abs() < reach)
    shape_weights = SHAPE_WEIGHT * batch.shape_weights.view(-1, 1, 1, 1, 1)
    on_pace = batch.on_pace[:, -batch.layout.noisy_chunks :, None, None, None]
    return (torch.where(near, shape_weights, GROUND_WEIGHT) * on_pace)[:, :, None]


def contrast_weight(scene: Scene) -> float:
    """How much more the error of a shape counts that its ground's colour nearly hides.

    A squared error sees little of a green triangle over yellow, so the network learns last that
    it is there at all; the weight makes up for the colours' distance.
    """
    ground = np.asarray(GROUND_RGB[scene.background]).mean(axis=0)
    distance = float(np.linalg.norm(np.asarray(FLAT_RGB[scene.color]) - ground))
    return float(np.clip((USUAL_CONTRAST / distance) ** 2, 0.7, MOST_CONTRAST_WEIGHT))


def add_noise(chunks: Tensor, copies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks [B, r, ...] -> m noisy copies [B, r, m, ...], their level indices and flow targets.

    The copies of one chunk are at different levels.
    """
    batch, count = chunks.shape[:2]
    order = torch.rand(batch, count, len(LEVELS)).argsort(dim=-1)
    indices = order[..., :copies]
    tail = (1,) * (chunks.ndim - 2)
    level = torch.tensor(LEVELS)[indices].view(*indices.shape, *tail)
    scale = torch.tensor(NOISE_SCALES)[indices].view(*indices.shape, *tail)
    clean = chunks.float()[:, :, None]
    noise = torch.randn(batch, count, copies, *chunks.shape[2:]) * scale
    noisy = (1 - level) * clean + level * noise
    return noisy.to(chunks.dtype), indices, noise - clean
