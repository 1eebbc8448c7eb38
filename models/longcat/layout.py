"""LongCat weights in the published channel order and in the engine's.

As in `qvg_engine.models.wan.layout`, queries and keys are permuted alike, once at load: the first
two thirds of the rows of the fused self-attention projection, and the weights of its norms. The
rows are moved within a tensor, so that loading needs no second copy of it.
"""

from collections.abc import Callable

from torch import Tensor

from qvg_engine.kernels.rope.layout import half_split_index, interleaved_index

_FUSED = (".attn.qkv.weight", ".attn.qkv.bias")
_NORMS = (".attn.q_norm.weight", ".attn.k_norm.weight")


def to_internal_(key: str, value: Tensor, head_dim: int) -> None:
    """Permute a tensor of the published state dict in place, for `LongCatNetwork` to hold."""
    _permute_(key, value, head_dim, half_split_index)


def to_published_(key: str, value: Tensor, head_dim: int) -> None:
    """The inverse of `to_internal_`."""
    _permute_(key, value, head_dim, interleaved_index)


def _permute_(
    key: str, value: Tensor, head_dim: int, index_of: Callable[[int, int], Tensor]
) -> None:
    if key.endswith(_NORMS):
        parts = [value]
    elif key.endswith(_FUSED):
        parts = list(value.chunk(3)[:2])
    else:
        return
    for part in parts:
        index = index_of(head_dim, len(part) // head_dim).to(value.device)
        part.copy_(part[index])
