"""WorldPlay-8B: HunyuanVideo-1.5's double-stream network with actions and cameras.

Text attends to text alone and does not depend on the video or on its time, so the text stream runs
once a prompt and leaves its keys and values to every block. The video stream attends to them, to
the memory and to itself, once rotated and once between cameras.

Modules have the published key names; inside, the channels of a head of queries and keys are in the
internal order. T tokens, F latent frames of the batch, D = dim, H heads, L text rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.models.attention import EngineAttention
from qvg_engine.models.wan.network import RMSNorm
from qvg_engine.models.wan.rows import FrameRows, PassSplits, apply_split
from qvg_engine.models.worldplay.hunyuan_config import HunyuanConfig
from qvg_engine.models.worldplay.hunyuan_text import (
    GLYPHS,
    IMAGE,
    LANGUAGE,
    GlyphMapper,
    ImageMapper,
    Mlp,
    NumberEmbedder,
    TextProjection,
    attend_rows,
)


class Modulation(nn.Module):
    """Six rows of shift, scale and gate, [F, D] -> [F, 6, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, vector: Tensor) -> Tensor:
        rows: Tensor = self.linear(functional.silu(vector)).unflatten(-1, (6, -1))
        return rows


def head_norm(config: HunyuanConfig) -> RMSNorm:
    """The norm of a head's queries or keys."""
    return RMSNorm(config.head_dim, config.eps)


def block_mlp(config: HunyuanConfig) -> Mlp:
    """The feed-forward of a stream."""
    return Mlp(config.dim, config.mlp_dim, nn.GELU(approximate="tanh"))


class DoubleBlock(nn.Module):
    """One block of the video stream, and one of the text stream."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.eps = config.num_heads, config.eps
        self.img_mod, self.txt_mod = Modulation(dim), Modulation(dim)
        self.img_attn_q, self.txt_attn_q = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.img_attn_k, self.txt_attn_k = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.img_attn_v, self.txt_attn_v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.img_attn_proj, self.txt_attn_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.img_attn_prope_proj = nn.Linear(dim, dim)
        self.img_attn_q_norm, self.txt_attn_q_norm = (head_norm(config) for _ in range(2))
        self.img_attn_k_norm, self.txt_attn_k_norm = (head_norm(config) for _ in range(2))
        self.img_mlp, self.txt_mlp = (block_mlp(config) for _ in range(2))

    def forward(
        self,
        x: Tensor,
        vector: Tensor,
        rows: FrameRows,
        layer: int,
        attention: EngineAttention,
        splits: PassSplits | None,
    ) -> Tensor:
        """The video stream, [T, D] -> [T, D]; `vector` is [F, D]."""
        frame_splits = splits.frames_view() if splits is not None else None
        modulation = apply_split(self.img_mod, vector, frame_splits).unbind(1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation

        y = rows.modulate(self._norm(x), shift, scale)
        rotated, projected = attention.self_attentions(
            layer,
            self.img_attn_q_norm(self._heads(apply_split(self.img_attn_q, y, splits))),
            self.img_attn_k_norm(self._heads(apply_split(self.img_attn_k, y, splits))),
            self._heads(apply_split(self.img_attn_v, y, splits)),
            with_text=True,
        )
        attended = apply_split(self.img_attn_proj, rotated.flatten(1), splits)
        attended = attended + apply_split(self.img_attn_prope_proj, projected.flatten(1), splits)
        x = rows.add_gated(x, attended, gate)

        y = rows.modulate(self._norm(x), mlp_shift, mlp_scale)
        return rows.add_gated(x, apply_split(self.img_mlp, y, splits), mlp_gate)

    def forward_text(self, x: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The text stream, [L, D] -> [L, D], with its K and V, [L, H, head_dim]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.txt_mod(vector)[0]
        y = torch.addcmul(shift, self._norm(x), 1 + scale)
        queries = self.txt_attn_q_norm(self._heads(self.txt_attn_q(y)))
        keys = self.txt_attn_k_norm(self._heads(self.txt_attn_k(y)))
        values = self._heads(self.txt_attn_v(y))
        x = x + gate * self.txt_attn_proj(attend_rows(queries, keys, values))
        y = torch.addcmul(mlp_shift, self._norm(x), 1 + mlp_scale)
        return x + mlp_gate * self.txt_mlp(y), keys, values

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads

    def _norm(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (x.shape[-1],), eps=self.eps)


class FinalLayer(nn.Module):
    """The last modulated norm and the projection to latent samples."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.linear = nn.Linear(config.dim, config.latent_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 2 * config.dim))

    def forward(
        self, x: Tensor, vector: Tensor, rows: FrameRows, splits: PassSplits | None
    ) -> Tensor:
        """[T, D] with the frames' vectors [F, D] -> [T, latent channels]."""
        frame_splits = splits.frames_view() if splits is not None else None
        shift, scale = apply_split(self.adaLN_modulation, vector, frame_splits).chunk(2, dim=-1)
        y = rows.modulate(functional.layer_norm(x, (x.shape[-1],), eps=self.eps), shift, scale)
        return apply_split(self.linear, y, splits)


class PatchProjection(nn.Module):
    """One latent sample is one token."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(config.in_channels, config.dim, kernel_size=1)

    def forward(self, samples: Tensor) -> Tensor:
        """[T, in_channels] -> [T, D]."""
        return functional.linear(samples, self.proj.weight.flatten(1), self.proj.bias)


class HunyuanNetwork(nn.Module):
    """The network of the 8B, with attention left to the engine."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        self.config = config
        self.img_in = PatchProjection(config)
        self.txt_in = TextProjection(config)
        self.time_in = NumberEmbedder(config)
        self.action_in = NumberEmbedder(config)
        self.byt5_in = GlyphMapper(config)
        self.vision_in = ImageMapper(config)
        self.cond_type_embedding = nn.Embedding(3, config.dim)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        samples: Tensor,
        timesteps: Tensor,
        labels: Tensor,
        tokens_per_frame: Sequence[int],
        attention: EngineAttention,
        *,
        splits: PassSplits | None = None,
    ) -> Tensor:
        """Predict the flow of every token.

        `samples` is [T, in_channels], `timesteps` and action `labels` are [F],
        `tokens_per_frame` F numbers that add up to T. Returns [T, latent channels]. With `splits`
        every linear layer runs pass by pass.
        """
        rows = FrameRows(tokens_per_frame, device=samples.device)
        frame_splits = splits.frames_view() if splits is not None else None
        vector = apply_split(self.time_in, timesteps, frame_splits)
        vector = vector + apply_split(self.action_in, labels, frame_splits)
        x = apply_split(self.img_in, samples, splits)
        for layer, block in enumerate(self.double_blocks):
            x = block(x, vector, rows, layer, attention, splits)
        flow: Tensor = self.final_layer(x, vector, rows, splits)
        return flow

    def text_tokens(
        self, language: Tensor, glyphs: Tensor | None = None, image: Tensor | None = None
    ) -> Tensor:
        """Text tokens [L, D] as they enter the first block, from encoder states without padding.

        `language` is [l, text_dim], `glyphs` [g, glyph_dim], `image` [i, image_dim]; the image's
        tokens come first, the language model's last.
        """
        kinds = self.cond_type_embedding.weight
        tokens = [self.txt_in(language) + kinds[LANGUAGE]]
        if glyphs is not None:
            tokens.insert(0, self.byt5_in(glyphs) + kinds[GLYPHS])
        if image is not None:
            tokens.insert(0, self.vision_in(image) + kinds[IMAGE])
        return torch.cat(tokens)

    def text_keys_values(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of text tokens [L, D] in every block, pairs of [L, H, head_dim]."""
        vector = self.time_in(torch.zeros(1, device=tokens.device))
        pairs = []
        x = tokens
        for block in self.double_blocks:
            assert isinstance(block, DoubleBlock)
            x, keys, values = block.forward_text(x, vector)
            pairs.append((keys, values))
        return pairs
