"""A stand-alone rollout of many prompts in lockstep, for looking at a training while it runs.

It computes what the engine computes with `dense` pages, chunk by chunk with a sliding window, but
holds whole tensors and knows nothing of streams: every prompt has the same length and size.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qvg_engine.models.pocket.batches import LEVELS
from qvg_engine.models.pocket.teacher_forcing import (
    FRAMES_PER_CHUNK,
    PocketModel,
    turn_table,
)
from qvg_engine.models.pocket.vae import PocketVae
from qvg_engine.models.pocket.vocabulary import read_prompt

WINDOW_FRAMES: Final = 48


class LockstepAttention:
    """The `Attention` of B videos that are at the same chunk, over dense tensors."""

    def __init__(self, model: PocketModel, prompts: Sequence[str], window_frames: int) -> None:
        rows = model.text_rows([read_prompt(prompt).rows for prompt in prompts])
        self._batch = len(prompts)
        self._text = [
            (self._heads(keys), self._heads(values))
            for keys, values in model.network.text_keys_values(rows.flatten(0, 1))
        ]
        self._head_dim = model.network.config.head_dim
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._context_chunks = window_frames // FRAMES_PER_CHUNK - 1
        self.commit = False

    def begin_chunk(self, chunk: int, height: int, width: int, dtype: torch.dtype) -> None:
        """Set the positions of the chunk and drop what left its window."""
        first = chunk * FRAMES_PER_CHUNK
        table = turn_table(first, FRAMES_PER_CHUNK, height, width, self._head_dim).to(dtype)
        self._cos, self._sin = table[0], table[1]
        keep = self._context_chunks * FRAMES_PER_CHUNK * height * width
        self._cache = {
            layer: (keys[:, :, -keep:], values[:, :, -keep:]) if keep else (keys[:, :, :0],) * 2
            for layer, (keys, values) in self._cache.items()
        }

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        q, k, v = self._turn(queries), self._turn(keys), self._heads(values)
        if layer in self._cache:
            k = torch.cat([self._cache[layer][0], k], dim=2)
            v = torch.cat([self._cache[layer][1], v], dim=2)
        if self.commit:
            self._cache[layer] = (k, v)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return attended.transpose(1, 2).flatten(0, 1)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        """See `Attention`."""
        attended = functional.scaled_dot_product_attention(self._heads(queries), *self._text[layer])
        return attended.transpose(1, 2).flatten(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(self._batch, -1, *x.shape[1:]).transpose(1, 2)

    def _turn(self, x: Tensor) -> Tensor:
        first, second = x.reshape(self._batch, -1, *x.shape[1:]).chunk(2, dim=-1)
        cos, sin = self._cos, self._sin
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        return turned.to(x.dtype).transpose(1, 2)


@torch.inference_mode()
def roll_out(
    model: PocketModel,
    prompts: Sequence[str],
    *,
    num_chunks: int,
    seed: int = 0,
    window_frames: int = WINDOW_FRAMES,
    size: tuple[int, int] = (8, 8),
    levels: Sequence[float] = LEVELS,
) -> Iterator[Tensor]:
    """Yield the latents [B, 3, C, h, w] of one chunk after another."""
    network = model.network
    dtype = network.head.head.weight.dtype
    attention = LockstepAttention(model, prompts, window_frames)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts), FRAMES_PER_CHUNK, network.config.in_dim, *size)
    tokens = [size[0] * size[1]] * (len(prompts) * FRAMES_PER_CHUNK)

    def flow(x: Tensor, level: float) -> Tensor:
        timesteps = torch.full((len(tokens),), 1000 * level, dtype=torch.float64)
        patches = network.patchify(x.flatten(0, 1).to(dtype))
        out = network(patches, timesteps, tokens, attention)
        return network.unpatchify(out, *size).float().view(shape)

    for chunk in range(num_chunks):
        attention.begin_chunk(chunk, *size, dtype)
        attention.commit = False
        x0 = torch.zeros(shape)
        for level in levels:
            noise = torch.randn(shape, generator=generator)
            x = (1 - level) * x0 + level * noise
            x0 = x - level * flow(x, level)
        attention.commit = True
        flow(x0, 0.0)
        yield x0


def decode_rollout(vae: PocketVae, chunks: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Latents of `roll_out` -> frames [B, T, H, W, 3]."""
    latents = torch.cat(list(chunks), dim=1)
    videos = [vae.decode_chunk(video)[0].numpy() for video in latents]
    return np.stack(videos)
