"""Wan weights in the published channel order and in the engine's.

Attention scores do not change when queries and keys are permuted alike, so the permutation of
`qvg_engine.kernels.rope.layout` is applied once, at load, to the rows of the self-attention's q
and k projections and to the weights of their norms.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from qvg_engine.kernels.rope.layout import half_split_index, interleaved_index

_PERMUTED = tuple(
    f"self_attn.{name}"
    for name in ("q.weight", "q.bias", "k.weight", "k.bias", "norm_q.weight", "norm_k.weight")
)


def to_internal(weights: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """A copy of a state dict in Wan's names and channel order, for `WanNetwork` to load."""
    return {key: internal(key, value, head_dim) for key, value in weights.items()}


def to_published(weights: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """The inverse of `to_internal`: a state dict of `WanNetwork` as it is published."""
    return {
        key: _permuted(key, value, head_dim, interleaved_index) for key, value in weights.items()
    }


def internal(key: str, value: Tensor, head_dim: int) -> Tensor:
    """One tensor of `to_internal`; the tensor itself where there is nothing to permute."""
    return _permuted(key, value, head_dim, half_split_index)


def _permuted(
    key: str, value: Tensor, head_dim: int, index_of: Callable[[int, int], Tensor]
) -> Tensor:
    if not key.endswith(_PERMUTED):
        return value
    return value[index_of(head_dim, len(value) // head_dim).to(value.device)]
