"""The network over whole clips at once: every chunk is denoised given the chunks before it.

Two forwards share one set of keys and values. The clean one runs the context at t = 0, block by
block causal, and leaves every layer's K and V; the noisy one runs several noisy copies of each
chunk, which see the clean chunks before theirs, inside the window, and themselves. This is what
the engine does chunk after chunk, without the waiting.

Shapes: B clips, m copies, n chunks, of which the noisy forward runs the last r; S tokens of a
chunk, H heads, D channels of a head.
"""

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.models.pocket.chunk_attention import attend_chunks
from qvg_engine.models.pocket.vocabulary import Vocabulary
from qvg_engine.models.wan.network import WanNetwork

FRAMES_PER_CHUNK = 3


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How many clips, chunks and noisy copies go through the network together."""

    batch: int
    chunks: int
    noisy_chunks: int
    copies: int


class PocketModel(nn.Module):
    """What is trained: the network and the vocabulary's table."""

    def __init__(self, network: WanNetwork, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.network = network
        self.vocabulary = vocabulary

    def text_rows(self, prompts: Sequence[tuple[tuple[int, int], ...]]) -> Tensor:
        """(word, role) indices of B prompts -> zero-padded rows [B, text_len, text_dim]."""
        rows = [self.vocabulary(prompt) for prompt in prompts]
        padded = [
            functional.pad(row, (0, 0, 0, self.vocabulary.text_len - len(row))) for row in rows
        ]
        return torch.stack(padded)


class TeacherForcing:
    """One batch of clips on its way through the network; the `Attention` of both forwards.

    Tokens are ordered clip, chunk, copy, frame, so that all copies of a chunk are one run of
    queries.
    """

    def __init__(self, model: PocketModel, layout: Layout, text_rows: Tensor) -> None:
        """`text_rows` [B, text_len, text_dim] are the prompts of the clips."""
        self._network = model.network
        self._layout = layout
        self._text = [
            (self._by_clip(keys), self._by_clip(values))
            for keys, values in model.network.text_keys_values(text_rows.flatten(0, 1))
        ]
        self._clean: dict[int, tuple[Tensor, Tensor]] = {}
        self._is_clean = True
        self._copies = 1
        self._first = 0
        self._last_layer = model.network.config.num_layers - 1
        self._scale = model.network.config.head_dim**-0.5

    def read_context(self, latents: Tensor) -> None:
        """Run clean chunks [B, n - 1 or more, 3, C, h, w]; the last chunk is nobody's context."""
        chunks = self._layout.chunks - 1
        self._is_clean, self._copies, self._first = True, 1, 0
        if chunks:
            context = latents[:, :chunks, None]
            self._forward(context, context.new_zeros(context.shape[:3]))

    def flow(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Predict the flow of noisy chunks [B, r, m, 3, C, h, w] at levels [B, r, m]."""
        self._is_clean, self._copies = False, noisy.shape[2]
        self._first = self._layout.chunks - self._layout.noisy_chunks
        return self._forward(noisy, levels)

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        k, v = self._turn(keys), self._by_clip(values)
        if self._is_clean:
            self._clean[layer] = (k, v)
            if layer == self._last_layer:
                # Only K and V of the context matter.
                return queries
        q = self._turn(queries, self._scale)
        nothing = (k[:, :, :0], v[:, :, :0])
        attended = attend_chunks(
            q,
            k,
            v,
            context=self._clean.get(layer, nothing),
            chunk_tokens=self._chunk_tokens,
            copies=self._copies,
            first=self._first,
        )
        return _tokens_first(attended)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        """See `Attention`."""
        keys, values = self._text[layer]
        weights = (self._by_clip(queries) @ keys.mT * self._scale).softmax(dim=-1)
        return _tokens_first(weights @ values)

    def _forward(self, latents: Tensor, levels: Tensor) -> Tensor:
        """Chunks [B, r, m, 3, C, h, w] at levels [B, r, m] -> their flow."""
        height, width = latents.shape[-2:]
        tokens_per_frame = height * width
        self._chunk_tokens = FRAMES_PER_CHUNK * tokens_per_frame
        first = self._first * FRAMES_PER_CHUNK
        count = latents.shape[1] * FRAMES_PER_CHUNK
        table = turn_table(first, count, height, width, self._network.config.head_dim)
        # [2, r, 1, S, 1, D / 2]: the copies of a chunk are at the same place.
        self._table = table.view(2, -1, 1, self._chunk_tokens, *table.shape[2:]).to(latents.dtype)
        frames = latents.flatten(0, 3)
        timesteps = (1000 * levels.double()).flatten().repeat_interleave(FRAMES_PER_CHUNK)
        flow = self._network(
            self._network.patchify(frames), timesteps, [tokens_per_frame] * len(frames), self
        )
        restored: Tensor = self._network.unpatchify(flow, height, width)
        return restored.view_as(latents)

    def _turn(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """[tokens, H, D] -> rotated and scaled [B, H, tokens of a clip, D]."""
        chunks = (self._layout.batch, -1, self._copies, self._chunk_tokens)
        first, second = x.to(self._table.dtype).view(*chunks, *x.shape[1:]).chunk(2, dim=-1)
        cos, sin = self._table * scale
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        return turned.flatten(1, 3).transpose(1, 2).contiguous()

    def _by_clip(self, x: Tensor) -> Tensor:
        """[tokens, H, D] -> [B, H, tokens of a clip, D]."""
        return x.view(self._layout.batch, -1, *x.shape[1:]).transpose(1, 2).contiguous()


def _tokens_first(x: Tensor) -> Tensor:
    """[B, H, tokens of a clip, D] -> [tokens, H, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def turn_table(first_frame: int, frames: int, height: int, width: int, head_dim: int) -> Tensor:
    """Cosines and sines [2, frames * height * width, 1, head_dim / 2] of the rotary positions."""
    third = 2 * (head_dim // 6)
    token = torch.arange(frames * height * width)
    positions = (
        (first_frame + token // (height * width), head_dim - 2 * third),
        (token // width % height, third),
        (token % width, third),
    )
    angles = torch.cat(
        [
            place.double()[:, None]
            * 10000.0 ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)
            for place, channels in positions
        ],
        dim=1,
    )
    return torch.stack([angles.cos(), angles.sin()])[:, :, None]
