"""The channel order of a head inside the engine, and that of published weights.

Published weights keep a rotation pair in neighbouring channels (2i, 2i + 1), the engine in the two
halves of a head (i, i + head_dim / 2). The order of the pairs (time, height, width) is the same.
"""

import torch
from torch import Tensor


def half_split_index(head_dim: int, num_heads: int = 1) -> Tensor:
    """int64 [num_heads * head_dim]: `interleaved[..., index]` is in half-split order.

    Index the output rows of a Q or K projection with it (weight, bias, norm weight), once at load.
    """
    within_head = torch.arange(head_dim).view(head_dim // 2, 2).T.reshape(-1)
    return (torch.arange(num_heads)[:, None] * head_dim + within_head).reshape(-1)


def interleaved_index(head_dim: int, num_heads: int = 1) -> Tensor:
    """int64 [num_heads * head_dim]: `half_split[..., index]` is in interleaved order."""
    within_head = torch.arange(head_dim).view(2, head_dim // 2).T.reshape(-1)
    return (torch.arange(num_heads)[:, None] * head_dim + within_head).reshape(-1)


def to_half_split(x: Tensor) -> Tensor:
    """x [..., head_dim] in interleaved order, as a new tensor in half-split order."""
    return x[..., half_split_index(x.shape[-1]).to(x.device)]


def to_interleaved(x: Tensor) -> Tensor:
    """x [..., head_dim] in half-split order, as a new tensor in interleaved order."""
    return x[..., interleaved_index(x.shape[-1]).to(x.device)]
