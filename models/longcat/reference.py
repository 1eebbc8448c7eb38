"""LongCat-Video's segments as a plain loop: one video, a dense cache, no pages, no batching.

It says what the engine must compute, and is what the engine is tested against where there is no
result of the original.
"""

import itertools
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.models.longcat.network import Block, LongCatNetwork
from qvg_engine.models.wan.reference import attend, rotate


class ReferenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout depends on besides weights, texts and noise.

    `segments` are pairs of condition and new latent frames; `sigmas` one sequence for each, the
    final 0 included. `reencode` turns a segment's latents and a number of frames into the next
    condition (None: its last latents); `round_cache` is applied to what is cached.
    """

    segments: Sequence[tuple[int, int]]
    sigmas: Sequence[Sequence[float]]
    guidance: float = 1.0
    reencode: Callable[[Tensor, int], Tensor] | None = None
    round_cache: Callable[[Tensor], Tensor] = lambda x: x


class DenseAttention:
    """Attention of one pass: a cache before RoPE, own tokens behind it, and the text."""

    def __init__(self, grid: tuple[int, int], round_cache: Callable[[Tensor], Tensor]) -> None:
        self.grid = grid
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}
        self.text: list[tuple[Tensor, Tensor]] | None = None
        self._round_cache = round_cache

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if self.text is None:
            self.cache[layer] = (self._round_cache(keys), self._round_cache(values))
            return attend(rotate(queries, self.grid, 0), rotate(keys, self.grid, 0), values)
        cached_keys, cached_values = self.cache.get(layer, (keys[:0], values[:0]))
        first = len(cached_keys) // (self.grid[0] * self.grid[1])
        all_keys = rotate(torch.cat([cached_keys, keys]), self.grid, 0)
        all_values = torch.cat([cached_values, values])
        return attend(rotate(queries, self.grid, first), all_keys, all_values)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        assert self.text is not None, "a pass without text attends to none"
        return attend(queries, *self.text[layer])


def rollout(
    network: LongCatNetwork,
    *,
    noise: Tensor,
    context: Tensor | None,
    prompts: Sequence[Tensor],
    negative: Tensor | None,
    settings: ReferenceSettings,
) -> list[Tensor]:
    """The new latents [F, C, h, w] of each segment.

    `noise` [F, C, h, w] is of all segments, `context` the first one's condition. `prompts` are of
    the segments, [L, D] behind the text MLP with whatever padding is attended to; `negative`
    likewise, or None without guidance.
    """
    _, p, q = network.config.patch_size
    grid = (noise.shape[2] // p, noise.shape[3] // q)
    attention = DenseAttention(grid, settings.round_cache)
    condition, done = noise[:0] if context is None else context, 0
    videos = []
    for (wanted, new), sigmas, prompt in zip(
        settings.segments, settings.sigmas, prompts, strict=True
    ):
        assert len(condition) == wanted, (len(condition), wanted)
        attention.cache.clear()
        if wanted:
            attention.text = None
            _forward(network, condition, 0.0, attention)
        x = noise[done : done + new]
        done += new
        for sigma, following in itertools.pairwise(sigmas):
            attention.text = _text(network, prompt)
            flow = _forward(network, x, 1000 * sigma, attention)
            if negative is not None:
                attention.text = _text(network, negative)
                other = _forward(network, x, 1000 * sigma, attention)
                other = other * (flow * other).sum() / ((other * other).sum() + 1e-8)
                flow = other + settings.guidance * (flow - other)
            # The network predicts x_0 - noise.
            x = x - (following - sigma) * flow
        videos.append(x)
        whole = torch.cat([condition, x])
        if len(videos) < len(settings.segments):
            following_frames = settings.segments[len(videos)][0]
            if settings.reencode is None:
                condition = whole[-following_frames:]
            else:
                condition = settings.reencode(whole, following_frames)
    return videos


def _text(network: LongCatNetwork, context: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [
        block.cross_attn.keys_values(context)
        for block in network.blocks
        if isinstance(block, Block)
    ]


def _forward(
    network: LongCatNetwork, latents: Tensor, timestep: float, attention: DenseAttention
) -> Tensor:
    frames, _, height, width = latents.shape
    tokens = network.patchify(latents)
    flow = network(
        tokens,
        torch.full((frames,), timestep, dtype=torch.float64),
        [len(tokens) // frames] * frames,
        attention,
        tokens_per_pass=[len(tokens)],
        reads_text=[attention.text is not None],
    )
    return network.unpatchify(flow, height, width)
