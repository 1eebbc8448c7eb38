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

from qvg_engine.models.pocket.vocabulary import Vocabulary
from qvg_engine.models.wan.network import WanNetwork

FRAMES_PER_CHUNK = 3
WINDOW_CHUNKS = 16


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
    """One batch of clips on its way through the network; the `Attention` of both forwards."""

    def __init__(self, model: PocketModel, layout: Layout, text_rows: Tensor) -> None:
        """`text_rows` [B, text_len, text_dim] are the prompts of the clips."""
        self._network = model.network
        self._layout = layout
        self._text = [
            (self._text_heads(keys), self._text_heads(values))
            for keys, values in model.network.text_keys_values(text_rows.flatten(0, 1))
        ]
        self._clean: dict[int, tuple[Tensor, Tensor]] = {}
        self._is_clean = True
        self._copies = 1
        self._first = 0
        self._last_layer = model.network.config.num_layers - 1

    def read_context(self, latents: Tensor) -> None:
        """Run clean chunks [B, n - 1 or more, 3, C, h, w]; the last chunk is nobody's context."""
        chunks = self._layout.chunks - 1
        self._is_clean, self._copies, self._first = True, 1, 0
        if chunks:
            context = latents[:, :chunks]
            self._forward(context, context.new_zeros(context.shape[:2]))

    def flow(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Predict the flow of noisy chunks [m, B, r, 3, C, h, w] at levels [m, B, r]."""
        self._is_clean, self._copies = False, len(noisy)
        self._first = self._layout.chunks - self._layout.noisy_chunks
        flow = self._forward(noisy.flatten(0, 1), levels.flatten(0, 1))
        return flow.unflatten(0, noisy.shape[:2])

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        if self._is_clean and layer == self._last_layer:
            # Only K and V of the context matter.
            self._clean[layer] = (self._turn(keys), self._heads(values))
            return queries
        q, k, v = self._turn(queries), self._turn(keys), self._heads(values)
        if self._is_clean:
            self._clean[layer] = (k, v)
        size = self._chunk_tokens
        outputs = []
        for place in range(q.shape[2] // size):
            own = slice(place * size, (place + 1) * size)
            seen = self._context(layer, self._first + place)
            outputs.append(
                functional.scaled_dot_product_attention(
                    q[:, :, own],
                    torch.cat([*(s for s in seen[:1]), k[:, :, own]], dim=2),
                    torch.cat([*(s for s in seen[1:]), v[:, :, own]], dim=2),
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2).flatten(0, 1)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        """See `Attention`."""
        keys, values = (x.repeat(self._copies, 1, 1, 1) for x in self._text[layer])
        attended = functional.scaled_dot_product_attention(self._heads(queries), keys, values)
        return attended.transpose(1, 2).flatten(0, 1)

    def _context(self, layer: int, chunk: int) -> tuple[Tensor, ...]:
        """K and V [m B, H, tokens, D] of the clean chunks that a chunk sees besides itself."""
        if chunk == 0:
            return ()
        size = self._chunk_tokens
        visible = slice(max(0, chunk - WINDOW_CHUNKS + 1) * size, chunk * size)
        return tuple(x[:, :, visible].repeat(self._copies, 1, 1, 1) for x in self._clean[layer])

    def _forward(self, latents: Tensor, levels: Tensor) -> Tensor:
        """Chunks [N, r, 3, C, h, w] at levels [N, r] -> their flow."""
        height, width = latents.shape[-2:]
        tokens_per_frame = height * width
        self._chunk_tokens = FRAMES_PER_CHUNK * tokens_per_frame
        head_dim = self._network.config.head_dim
        first = self._first * FRAMES_PER_CHUNK
        count = latents.shape[1] * FRAMES_PER_CHUNK
        turn = turn_table(first, count, height, width, head_dim).to(latents.dtype)
        self._cos, self._sin = turn[0], turn[1]
        frames = latents.flatten(0, 2)
        timesteps = (1000 * levels.double()).flatten().repeat_interleave(FRAMES_PER_CHUNK)
        flow = self._network(
            self._network.patchify(frames), timesteps, [tokens_per_frame] * len(frames), self
        )
        return self._network.unpatchify(flow, height, width).view_as(latents)

    def _turn(self, x: Tensor) -> Tensor:
        """[tokens, H, D] -> rotated [N, H, tokens of a clip, D]."""
        first, second = x.to(self._cos.dtype).unflatten(0, (-1, len(self._cos))).chunk(2, dim=-1)
        cos, sin = self._cos, self._sin
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        return turned.transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.to(self._cos.dtype).unflatten(0, (-1, len(self._cos))).transpose(1, 2)

    def _text_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self._layout.batch, -1)).transpose(1, 2)


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
