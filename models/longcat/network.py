"""The LongCat-Video network: one forward over the tokens of all passes of a step.

It owns the weights under their published key names and knows nothing of segments, caches or
positions: those belong to the `Attention` that it is given. Linear layers see one [tokens, dim]
matrix. Timestep modulation is per latent frame; it, the gates and the norms are computed in fp32.

Shapes: T tokens, F latent frames of the batch, D = hidden_size, E = adaln_tembed_dim, H heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_engine.kernels.device_table import send
from qvg_engine.models.attention import Attention
from qvg_engine.models.longcat.config import LongCatConfig
from qvg_engine.models.patch_grid import from_patches, to_patches
from qvg_engine.models.wan.network import RMSNorm, time_sinusoid
from qvg_engine.models.wan.rows import FrameRows, PassSplits, apply_split


class SingleLinear(nn.Linear):
    """A linear layer that computes in fp32, whatever dtype its weights are kept in."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(x.float(), self.weight.float(), bias)


class SelfAttention(nn.Module):
    """Fused projections of q, k and v with a norm over each head of q and k."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.eps)
        self.k_norm = RMSNorm(config.head_dim, config.eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, layer: int, attention: Attention, splits: PassSplits | None
    ) -> Tensor:
        """[T, D] -> [T, D]."""
        fused = apply_split(self.qkv, x, splits).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = fused.unbind(1)
        attended = attention.self_attention(layer, self.q_norm(queries), self.k_norm(keys), values)
        return apply_split(self.proj, attended.flatten(1), splits)


class CrossAttention(nn.Module):
    """Attention of the tokens to their pass's text; a norm over each head of q and k."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_linear = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv_linear = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.eps)
        self.k_norm = RMSNorm(config.head_dim, config.eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, layer: int, attention: Attention, splits: PassSplits | None
    ) -> Tensor:
        """[T, D] -> [T, D]."""
        heads = apply_split(self.q_linear, x, splits).unflatten(-1, (self.num_heads, -1))
        attended = attention.cross_attention(layer, self.q_norm(heads))
        return apply_split(self.proj, attended.flatten(1), splits)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [L, H, head_dim] of a text's rows [L, D]."""
        keys, values = self.kv_linear(context).unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        return self.k_norm(keys), values.contiguous()


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), without biases."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return product


class AdaLN(nn.Sequential):
    """SiLU and a linear layer from the time embedding [F, E] to rows [F, num_rows, D], in fp32."""

    def __init__(self, config: LongCatConfig, num_rows: int) -> None:
        width = num_rows * config.hidden_size
        super().__init__(nn.SiLU(), SingleLinear(config.adaln_tembed_dim, width))
        self.num_rows = num_rows

    def rows(self, time: Tensor, splits: PassSplits | None) -> tuple[Tensor, ...]:
        """`num_rows` tensors [F, D]; `splits` are of rows that stand for latent frames."""
        rows: Tensor = apply_split(self, time, splits).unflatten(-1, (self.num_rows, -1))
        return rows.unbind(1)


class BatchRows:
    """How the rows of a batch belong together: to latent frames, to passes, and to texts."""

    def __init__(
        self,
        tokens_per_frame: Sequence[int],
        tokens_per_pass: Sequence[int],
        reads_text: Sequence[bool],
        splits: PassSplits | None,
        *,
        device: torch.device,
    ) -> None:
        self.frames = FrameRows(tokens_per_frame, device=device)
        self.splits = splits
        self.frame_splits = splits.frames_view() if splits is not None else None
        self._tokens_per_pass = tuple(tokens_per_pass)
        self._reads_text = tuple(reads_text)

    @property
    def any_text(self) -> bool:
        """Whether there is a pass that reads text."""
        return any(self._reads_text)

    def add_for_readers(self, x: Tensor, update: Tensor) -> Tensor:
        """x + update in the rows of passes that read text; x in those of the others."""
        if all(self._reads_text):
            return x + update
        parts = zip(
            self._reads_text,
            x.split(self._tokens_per_pass),
            update.split(self._tokens_per_pass),
            strict=True,
        )
        return torch.cat([own + new if reads else own for reads, own, new in parts])


class Block(nn.Module):
    """Self-attention, cross-attention and SwiGLU; the first and the last are modulated."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.adaLN_modulation = AdaLN(config, 6)
        self.pre_crs_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.attn = SelfAttention(config)
        self.cross_attn = CrossAttention(config)
        self.ffn = SwiGLU(config)

    def forward(
        self, x: Tensor, time: Tensor, rows: BatchRows, layer: int, attention: Attention
    ) -> Tensor:
        """[T, D] with the time embedding [F, E] in fp32 -> [T, D]."""
        modulation = self.adaLN_modulation.rows(time, rows.frame_splits)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation

        y = modulated_norm(x, rows.frames, shift, scale, self.eps)
        x = _add_gated(x, self.attn(y, layer, attention, rows.splits), rows.frames, gate)
        if rows.any_text:
            y = self._text_norm(x)
            x = rows.add_for_readers(x, self.cross_attn(y, layer, attention, rows.splits))
        y = modulated_norm(x, rows.frames, ffn_shift, ffn_scale, self.eps)
        return _add_gated(x, apply_split(self.ffn, y, rows.splits), rows.frames, ffn_gate)

    def _text_norm(self, x: Tensor) -> Tensor:
        norm = self.pre_crs_attn_norm
        shape, weight, bias = (x.shape[-1],), norm.weight.float(), norm.bias.float()
        return functional.layer_norm(x.float(), shape, weight, bias, self.eps).to(x.dtype)


class PatchEmbedding(nn.Module):
    """One linear layer over the samples of a patch, kept as the convolution that it is."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, patches: Tensor) -> Tensor:
        """[T, in_channels * patch samples] -> [T, D]."""
        return functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class TimeEmbedding(nn.Module):
    """The sinusoid of a timestep through an MLP, in fp32."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.freq_dim = config.frequency_embedding_size
        dim = config.adaln_tembed_dim
        self.mlp = nn.Sequential(
            SingleLinear(self.freq_dim, dim), nn.SiLU(), SingleLinear(dim, dim)
        )

    def forward(self, timesteps: Tensor, splits: PassSplits | None) -> Tensor:
        """[F] in 0..1000 -> [F, E]."""
        return apply_split(self.mlp, time_sinusoid(timesteps, self.freq_dim).float(), splits)


class TextEmbedding(nn.Module):
    """The MLP between the text encoder's rows and the blocks."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.y_proj = nn.Sequential(
            nn.Linear(config.caption_channels, dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(dim, dim),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """[L, caption_channels] -> [L, D]."""
        embedded: Tensor = self.y_proj(rows)
        return embedded


class FinalLayer(nn.Module):
    """The last modulated norm and the projection to the samples of a patch."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.linear = nn.Linear(config.hidden_size, config.patch_samples * config.out_channels)
        self.adaLN_modulation = AdaLN(config, 2)

    def forward(self, x: Tensor, time: Tensor, rows: BatchRows) -> Tensor:
        """[T, D] with the time embedding [F, E] -> [T, patch samples * out_channels]."""
        shift, scale = self.adaLN_modulation.rows(time, rows.frame_splits)
        y = modulated_norm(x, rows.frames, shift, scale, self.eps)
        return apply_split(self.linear, y, rows.splits)


class LongCatNetwork(nn.Module):
    """The network of LongCat-Video with attention left to its `Attention`.

    Weights have the published names; inside, the channels of a head of the self-attention's
    queries and keys are in the internal order (see `qvg_engine.models.longcat.layout`).
    """

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedding(config)
        self.t_embedder = TimeEmbedding(config)
        self.y_embedder = TextEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.final_layer.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.final_layer.linear.weight.dtype

    def forward(
        self,
        patches: Tensor,
        timesteps: Tensor,
        tokens_per_frame: Sequence[int],
        attention: Attention,
        *,
        tokens_per_pass: Sequence[int],
        reads_text: Sequence[bool],
        splits: PassSplits | None = None,
    ) -> Tensor:
        """Predict the flow of every patch, in fp32.

        `patches` is [T, in_channels * patch samples] from `patchify`, `timesteps` [F] in 0..1000,
        `tokens_per_frame` F numbers that add up to T, and so do `tokens_per_pass`; what
        cross-attention gives to a pass that does not read text is not used. Returns [T, patch
        samples * out_channels] for `unpatchify`. With `splits` every linear layer runs pass by
        pass, so that a pass's result does not depend on what else is in the batch.

        The network sees timesteps rounded to its dtype: 973.01 is 972 in bf16.
        """
        rows = BatchRows(
            tokens_per_frame, tokens_per_pass, reads_text, splits, device=patches.device
        )
        time = self.t_embedder(timesteps.to(self.dtype), rows.frame_splits)
        x = apply_split(self.x_embedder, patches.to(self.dtype), splits)
        for layer, block in enumerate(self.blocks):
            x = block(x, time, rows, layer, attention)
        flow: Tensor = self.final_layer(x, time, rows)
        return flow.float()

    def embed_text(self, rows: Tensor) -> Tensor:
        """The text encoder's rows [L, caption_channels] as the blocks see them, [L, D].

        With `text_tokens_zero_pad` a row of zeros is padding, and stays one.
        """
        rows = send(rows, self.device, self.dtype)
        embedded: Tensor = self.y_embedder(rows)
        if self.config.text_tokens_zero_pad:
            embedded = embedded.masked_fill((rows == 0).all(dim=1, keepdim=True), 0)
        return embedded

    def text_keys_values(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every block's cross-attention for rows [L, caption_channels].

        Returns a pair of [L, H, head_dim] tensors a layer.
        """
        context = self.embed_text(rows)
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return [block.cross_attn.keys_values(context) for block in blocks]

    def patchify(self, latents: Tensor) -> Tensor:
        """[F, in_channels, height, width] -> [F * tokens per frame, in_channels * samples]."""
        return to_patches(latents, self.config.patch_size)

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """The network's output for whole frames -> [F, out_channels, height, width]."""
        config = self.config
        return from_patches(
            tokens, height, width, channels=config.out_channels, patch_size=config.patch_size
        )


def modulated_norm(
    x: Tensor, frames: FrameRows, shift: Tensor, scale: Tensor, eps: float
) -> Tensor:
    """LN(x) * (1 + scale) + shift in fp32, in the dtype of x."""
    normed = functional.layer_norm(x.float(), (x.shape[-1],), eps=eps)
    return frames.modulate(normed, shift, scale).to(x.dtype)


def _add_gated(x: Tensor, update: Tensor, frames: FrameRows, gate: Tensor) -> Tensor:
    return frames.add_gated(x.float(), update.float(), gate).to(x.dtype)
