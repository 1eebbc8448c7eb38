"""From encoder states to the text tokens of the 8B: refiner and mappers.

Modules have the published key names. L text rows, D = dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.models.wan.network import time_sinusoid
from qvg_engine.models.worldplay.hunyuan_config import HunyuanConfig

# Rows of `cond_type_embedding`.
LANGUAGE, GLYPHS, IMAGE = 0, 1, 2


class NumberEmbedder(nn.Module):
    """A sinusoid of numbers [N] through a small network, [N, D]."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.mlp = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )

    def forward(self, numbers: Tensor) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype
        sinusoid = time_sinusoid(numbers, self.freq_dim).to(dtype)
        embedded: Tensor = self.mlp(sinusoid)
        return embedded


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class ContextEmbedder(nn.Module):
    """The mean of the language model's states, [1, text_dim] to [1, D]."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.text_dim, config.dim)
        self.linear_2 = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(functional.silu(self.linear_1(x)))
        return out


class RefinerBlock(nn.Module):
    """Attention among the text rows and a feed-forward, both gated by the context."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.self_attn_qkv = nn.Linear(dim, 3 * dim)
        self.self_attn_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = Mlp(dim, config.refiner_mlp_dim, nn.SiLU())
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[L, D] -> [L, D]; `context` is [1, D]."""
        attention_gate, mlp_gate = self.adaLN_modulation(context).chunk(2, dim=-1)
        qkv = self.self_attn_qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        attended = attend_rows(*qkv.unbind(1))
        x = x + attention_gate * self.self_attn_proj(attended)
        out: Tensor = x + mlp_gate * self.mlp(self.norm2(x))
        return out


class TokenRefiner(nn.Module):
    """The blocks under their published name."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(config) for _ in range(config.refiner_layers))


class TextProjection(nn.Module):
    """The language model's states, refined: [L, text_dim] -> [L, D]."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(config.text_dim, config.dim)
        self.t_embedder = NumberEmbedder(config)
        self.c_embedder = ContextEmbedder(config)
        self.individual_token_refiner = TokenRefiner(config)

    def forward(self, states: Tensor) -> Tensor:
        """Without padding rows; the timestep is 0."""
        zero = torch.zeros(1, device=states.device)
        context = self.t_embedder(zero) + self.c_embedder(states.mean(dim=0, keepdim=True))
        x: Tensor = self.input_embedder(states)
        for block in self.individual_token_refiner.blocks:
            x = block(x, context)
        return x


class GlyphMapper(nn.Module):
    """ByT5's states of quoted text: [L, glyph_dim] -> [L, D]."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        hidden = config.glyph_hidden
        self.layernorm = nn.LayerNorm(config.glyph_dim)
        self.fc1 = nn.Linear(config.glyph_dim, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, config.dim)

    def forward(self, states: Tensor) -> Tensor:
        x = functional.gelu(self.fc1(self.layernorm(states)))
        out: Tensor = self.fc3(functional.gelu(self.fc2(x)))
        return out


class ImageMapper(nn.Module):
    """SigLIP's states of the first image: [L, image_dim] -> [L, D]."""

    def __init__(self, config: HunyuanConfig) -> None:
        super().__init__()
        dim = config.image_dim
        self.proj = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.Linear(dim, config.dim),
            nn.LayerNorm(config.dim),
        )

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.proj(states)
        return out


def attend_rows(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention among rows of one text: three of [L, heads, head_dim] to [L, D]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (queries, keys, values))
    attended: Tensor = functional.scaled_dot_product_attention(q, k, v)
    return attended[0].transpose(0, 1).flatten(1)
