"""The causal rollout as a plain loop: one video, dense cache, no pages, no batching.

It says in forty lines what the engine must compute, and is what the engine is tested against.
"""

from collections.abc import Callable

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from qvg_engine.models.rollout import Positions
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.models.wan.sampler import FewStepSampler


class ReferenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout depends on besides weights, prompt and noise.

    `window_frames` counts the chunk itself (None = everything); `round_cache` is applied to the
    keys (before RoPE) and values of the cache, e.g. a rounding to bf16. `positions` as in
    `RolloutSettings`.
    """

    frames_per_chunk: int
    sampler: FewStepSampler
    window_frames: int | None = None
    sink_frames: int = 0
    text_len: int = 512
    positions: Positions = "absolute"
    round_cache: Callable[[Tensor], Tensor] | None = None


class ReferenceResult(msgspec.Struct):
    """`latents` [F, C, h, w]; per chunk and pass `x0` and `flow`, the commit's last; the cache."""

    latents: Tensor
    x0: list[list[Tensor]]
    flow: list[list[Tensor]]
    keys: list[Tensor]
    values: list[Tensor]


class DenseAttention:
    """Attention of one pass over a dense cache; keys are kept before RoPE in `cache`."""

    def __init__(self, network: WanNetwork, text_rows: Tensor, settings: ReferenceSettings) -> None:
        self.network = network
        self.settings = settings
        self.set_text(text_rows)
        self.head_dim = network.config.head_dim
        self.keys: list[Tensor | None] = [None] * network.config.num_layers
        self.values: list[Tensor | None] = [None] * network.config.num_layers
        self.grid = (0, 0)
        self.first_frame = 0
        self.commit = False

    def set_text(self, rows: Tensor) -> None:
        """Attend to another text from now on."""
        padding = rows.new_zeros(self.settings.text_len - len(rows), rows.shape[1])
        self.text = self.network.text_keys_values(torch.cat([rows, padding]))

    def forget(self, first_frame: int) -> None:
        """Drop the cache from a frame on, and go on there."""
        num_tokens = first_frame * self.grid[0] * self.grid[1]
        self.keys = [None if keys is None else keys[:num_tokens] for keys in self.keys]
        self.values = [None if values is None else values[:num_tokens] for values in self.values]
        self.first_frame = first_frame

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        tokens_per_frame = self.grid[0] * self.grid[1]
        own_frames = len(queries) // tokens_per_frame
        cached_keys, cached_values = self.keys[layer], self.values[layer]
        if cached_keys is None or cached_values is None:
            cached_keys, cached_values = keys[:0], values[:0]
        frames = self._visible(own_frames)
        visible = frames.repeat_interleave(tokens_per_frame)
        own_position = self.first_frame
        if self.settings.positions == "window":
            own_position = int(frames.sum())
            cached = rotate(cached_keys[visible], self.grid, 0)
        else:
            cached = rotate(cached_keys, self.grid, 0)[visible]
        own = rotate(keys, self.grid, own_position)
        if self.commit:
            keep = self.settings.round_cache or (lambda x: x)
            self.keys[layer] = torch.cat([cached_keys, keep(keys)])
            self.values[layer] = torch.cat([cached_values, keep(values)])
        return attend(
            rotate(queries, self.grid, own_position),
            torch.cat([cached, own]),
            torch.cat([cached_values[visible], values]),
        )

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return attend(queries, *self.text[layer])

    def _visible(self, own_frames: int) -> Tensor:
        frames = torch.arange(self.first_frame)
        if self.settings.window_frames is None:
            return frames >= 0
        start = (
            self.first_frame
            + own_frames
            - (self.settings.window_frames - self.settings.sink_frames)
        )
        return (frames < self.settings.sink_frames) | (frames >= start)


def rollout(
    network: WanNetwork,
    *,
    prompt_embeds: Tensor,
    noise: Tensor,
    renoise: Tensor,
    settings: ReferenceSettings,
    switch: tuple[int, Tensor] | None = None,
) -> ReferenceResult:
    """Generate one video from given noise.

    With `switch`, a chunk index and the text from there on, the window's clean latents but for the
    sink run again in one pass under the new text first.

    `prompt_embeds` is [L, text_dim], `noise` [F, C, h, w], `renoise` [chunks, steps - 1, frames
    per chunk, C, h, w]. The last chunk is committed as well.
    """
    attention = DenseAttention(network, prompt_embeds, settings)
    sampler = settings.sampler
    _, p, q = network.config.patch_size
    attention.grid = (noise.shape[2] // p, noise.shape[3] // q)
    x0s: list[list[Tensor]] = []
    flows: list[list[Tensor]] = []
    for chunk, x in enumerate(noise.split(settings.frames_per_chunk)):
        x0s.append([])
        flows.append([])
        if switch is not None and chunk == switch[0]:
            _switch(network, attention, switch[1], torch.cat([done[-2] for done in x0s[:-1]]))
        attention.first_frame = chunk * settings.frames_per_chunk
        attention.commit = False
        for step, timestep in enumerate(sampler.timesteps):
            flow = _forward(network, x, timestep, attention)
            x0 = sampler.predict_x0(x, flow, step)
            x0s[-1].append(x0)
            flows[-1].append(flow)
            if step + 1 < sampler.num_steps:
                x = sampler.renoise(x0, renoise[chunk, step], step + 1)
        attention.commit = True
        flow = _forward(network, x0, sampler.commit_timestep, attention)
        flows[-1].append(flow)
        x0s[-1].append(sampler.predict_x0(x0, flow, None))
    keys = [rotate(k, attention.grid, 0) for k in attention.keys if k is not None]
    values = [v for v in attention.values if v is not None]
    latents = torch.cat([chunk_x0[-2] for chunk_x0 in x0s])
    return ReferenceResult(latents, x0s, flows, keys, values)


def _switch(
    network: WanNetwork, attention: DenseAttention, text_rows: Tensor, clean: Tensor
) -> None:
    settings = attention.settings
    start = settings.sink_frames
    if settings.window_frames is not None:
        start = max(start, len(clean) - (settings.window_frames - settings.sink_frames))
    attention.set_text(text_rows)
    if start < len(clean):
        attention.forget(start)
        attention.commit = True
        _forward(network, clean[start:], settings.sampler.commit_timestep, attention)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Plain attention of [Tq, H, D] over [Tk, H, D]."""
    out = functional.scaled_dot_product_attention(
        queries.transpose(0, 1)[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    )
    return out[0].transpose(0, 1)


def rotate(x: Tensor, grid: tuple[int, int], first_frame: int) -> Tensor:
    """RoPE of whole frames [T, H, D] in the internal channel order, in fp64."""
    height, width = grid
    half = x.shape[-1] // 2
    third = 2 * (x.shape[-1] // 6)
    token = torch.arange(len(x))
    frame = first_frame + token // (height * width)
    row, column = token // width % height, token % width
    parts = []
    for position, channels in ((frame, 2 * half - 2 * third), (row, third), (column, third)):
        exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        parts.append(position.double()[:, None] * 10000.0**-exponents)
    angles = torch.cat(parts, dim=1)[:, None]
    first, second = x.double().split(half, dim=-1)
    turned = [
        first * angles.cos() - second * angles.sin(),
        first * angles.sin() + second * angles.cos(),
    ]
    return torch.cat(turned, dim=-1).to(x.dtype)


def _forward(
    network: WanNetwork, latents: Tensor, timestep: float, attention: DenseAttention
) -> Tensor:
    frames, _, height, width = latents.shape
    tokens = network.patchify(latents)
    flow = network(
        tokens,
        torch.full((frames,), timestep, dtype=torch.float64),
        [len(tokens) // frames] * frames,
        attention,
    )
    return network.unpatchify(flow, height, width)
