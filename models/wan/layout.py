"""The order of channels inside a head: published against internal.

Published weights rotate channel pairs (2i, 2i + 1). The engine keeps pair i in channels
(i, i + head_dim / 2), so that a rotation reads two contiguous runs. Attention scores do not
change when queries and keys are permuted alike, so the permutation is applied once, to the rows
of the self-attention's q and k projections and to the weights of their norms.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_PERMUTED = tuple(
    f"self_attn.{name}"
    for name in ("q.weight", "q.bias", "k.weight", "k.bias", "norm_q.weight", "norm_k.weight")
)


def internal_order(head_dim: int) -> Tensor:
    """Published channel that each internal channel of a head comes from, [head_dim]."""
    return torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])


def published_order(head_dim: int) -> Tensor:
    """Internal channel that each published channel of a head comes from, [head_dim]."""
    return torch.argsort(internal_order(head_dim))


def to_internal(weights: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """A copy of a state dict in Wan's names and channel order, for `WanNetwork` to load."""
    return _permute(weights, internal_order(head_dim))


def to_published(weights: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """The inverse of `to_internal`: a state dict of `WanNetwork` as it is published."""
    return _permute(weights, published_order(head_dim))


def _permute(weights: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    permuted = dict(weights)
    for key, value in weights.items():
        if key.endswith(_PERMUTED):
            heads = value.unflatten(0, (-1, len(order)))
            permuted[key] = heads[:, order.to(value.device)].flatten(0, 1)
    return permuted
