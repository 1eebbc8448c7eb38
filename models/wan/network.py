"""The causal Wan network: one forward over the tokens of all passes of a step.

It owns the weights under Wan's published key names and knows nothing of chunks, caches or
positions: those belong to the `Attention` that it is given. Linear layers see one
[tokens, dim] matrix; the timestep modulation is per latent frame.

Shapes: T tokens, F latent frames of the batch, D = dim, H heads, L text rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.models.attention import Attention
from qvg_engine.models.patch_grid import from_patches, to_patches
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.rows import FrameRows, PassSplits, apply_split


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, computed in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (
            functional.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype) * self.weight
        )


class AttentionProjections(nn.Module):
    """Query, key, value and output projections with a norm over the whole width of q and k."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def queries(self, x: Tensor, splits: PassSplits | None) -> Tensor:
        """[T, D] -> [T, H, head_dim]."""
        return self._heads(self.norm_q(apply_split(self.q, x, splits)))

    def keys(self, x: Tensor, splits: PassSplits | None = None) -> Tensor:
        """[T, D] -> [T, H, head_dim]."""
        return self._heads(self.norm_k(apply_split(self.k, x, splits)))

    def values(self, x: Tensor, splits: PassSplits | None = None) -> Tensor:
        """[T, D] -> [T, H, head_dim]."""
        return self._heads(apply_split(self.v, x, splits))

    def output(self, attended: Tensor, splits: PassSplits | None) -> Tensor:
        """[T, H, head_dim] -> [T, D]."""
        return apply_split(self.o, attended.flatten(1), splits)

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated per latent frame."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = AttentionProjections(config)
        self.cross_attn = AttentionProjections(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )

    def forward(
        self,
        x: Tensor,
        frame_modulation: Tensor,
        rows: FrameRows,
        layer: int,
        attention: Attention,
        splits: PassSplits | None,
    ) -> Tensor:
        """[T, D] -> [T, D]; `frame_modulation` is [F, 6, D], shared by all blocks."""
        modulation = (self.modulation + frame_modulation).unbind(1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation

        y = rows.modulate(self._norm(x), shift, scale)
        x = rows.add_gated(x, self._attend(y, layer, attention, splits), gate)

        queries = self.cross_attn.queries(self.norm3(x), splits)
        x = x + self.cross_attn.output(attention.cross_attention(layer, queries), splits)

        y = rows.modulate(self._norm(x), ffn_shift, ffn_scale)
        return rows.add_gated(x, apply_split(self.ffn, y, splits), ffn_gate)

    def _attend(
        self, y: Tensor, layer: int, attention: Attention, splits: PassSplits | None
    ) -> Tensor:
        attended = attention.self_attention(
            layer,
            self.self_attn.queries(y, splits),
            self.self_attn.keys(y, splits),
            self.self_attn.values(y, splits),
        )
        return self.self_attn.output(attended, splits)

    def _norm(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (x.shape[-1],), eps=self.eps)


class Head(nn.Module):
    """The last modulated norm and the projection to the samples of a patch."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.patch_samples * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(
        self, x: Tensor, time: Tensor, rows: FrameRows, splits: PassSplits | None
    ) -> Tensor:
        """[T, D] with the time embedding [F, D] -> [T, patch samples * out_dim]."""
        shift, scale = (self.modulation + time[:, None]).unbind(1)
        y = rows.modulate(functional.layer_norm(x, (x.shape[-1],), eps=self.eps), shift, scale)
        return apply_split(self.head, y, splits)


class WanNetwork(nn.Module):
    """The network of the Wan family with causal attention left to its `Attention`.

    Weights have Wan's names; inside, the channels of a head of the self-attention's queries and
    keys are in the internal order (see `qvg_engine.models.wan.layout`).
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(
            config.in_dim, dim, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)

    def forward(
        self,
        patches: Tensor,
        timesteps: Tensor,
        tokens_per_frame: Sequence[int],
        attention: Attention,
        *,
        splits: PassSplits | None = None,
    ) -> Tensor:
        """Predict the flow of every patch.

        `patches` is [T, in_dim * patch samples] from `patchify`, `timesteps` [F] in 0..1000,
        `tokens_per_frame` F numbers that add up to T. Returns [T, patch samples * out_dim] for
        `unpatchify`. With `splits` every linear layer runs pass by pass, so that a pass's result
        does not depend on what else is in the batch.
        """
        frame_splits = splits.frames_view() if splits is not None else None
        sinusoid = time_sinusoid(timesteps, self.config.freq_dim).to(patches.dtype)
        time = apply_split(self.time_embedding, sinusoid, frame_splits)
        return self._predict(patches, time, tokens_per_frame, attention, splits)

    def _predict(
        self,
        patches: Tensor,
        time: Tensor,
        tokens_per_frame: Sequence[int],
        attention: Attention,
        splits: PassSplits | None,
    ) -> Tensor:
        """`forward` from the embedding [F, D] of each latent frame's time on."""
        rows = FrameRows(tokens_per_frame, device=patches.device)
        frame_splits = splits.frames_view() if splits is not None else None
        modulation = apply_split(self.time_projection, time, frame_splits)
        modulation = modulation.unflatten(-1, (6, self.config.dim))

        x = apply_split(self._embed_patches, patches, splits)
        for layer, block in enumerate(self.blocks):
            x = block(x, modulation, rows, layer, attention, splits)
        flow: Tensor = self.head(x, time, rows, splits)
        return flow

    def text_keys_values(self, text_rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every block's cross-attention for text rows [L, text_dim].

        Returns a pair of [L, H, head_dim] tensors a layer. Rows that are equal give equal keys
        and values, so that padding needs one row only.
        """
        context = self.text_embedding(text_rows)
        projections = [block.cross_attn for block in self.blocks if isinstance(block, Block)]
        return [(layer.keys(context), layer.values(context)) for layer in projections]

    def patchify(self, latents: Tensor) -> Tensor:
        """[F, in_dim, height, width] -> [F * tokens per frame, in_dim * patch samples]."""
        return to_patches(latents, self.config.patch_size)

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """The network's output for whole frames -> [F, out_dim, height, width]."""
        config = self.config
        return from_patches(
            tokens, height, width, channels=config.out_dim, patch_size=config.patch_size
        )

    def _embed_patches(self, patches: Tensor) -> Tensor:
        weight = self.patch_embedding.weight.flatten(1)
        return functional.linear(patches, weight, self.patch_embedding.bias)


def time_sinusoid(timesteps: Tensor, freq_dim: int) -> Tensor:
    """[F] timesteps -> [F, freq_dim] of cosines then sines, base 10000, in fp64."""
    half = freq_dim // 2
    steps = torch.arange(half, dtype=torch.float64, device=timesteps.device)
    angles = timesteps.double()[:, None] * torch.pow(10000.0, -steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
