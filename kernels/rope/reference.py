"""The rotation in plain torch."""

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of every head.

    Args:
        x: [tokens, heads, head_dim], half-split channel order.
        cos, sin: [tokens, head_dim / 2], fp64 or fp32, from `RopeGrid.rows` or `RopeTables.rows`.
        inverse: rotate backwards.

    Returns a new tensor of x's shape and dtype; the arithmetic is done in the dtype of
    `cos` and `sin`, or in that of `x` if it is wider.
    """
    dtype = torch.promote_types(x.dtype, cos.dtype)
    first, second = x.to(dtype).chunk(2, dim=-1)
    cos, sin = cos[:, None].to(dtype), sin[:, None].to(dtype)
    if inverse:
        sin = -sin
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)
