"""What centroids leave of rows, on a GPU, in Triton; equal to the other kernels bit by bit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.gpu import Variant

_TOKENS = 32
_WARPS = 4


@triton.jit(do_not_specialize=["num_tokens", "num_centroids"])
def _subtract(
    points: tl.tensor,
    centroids: tl.tensor,
    ids: tl.tensor,
    left: tl.tensor,
    energies: tl.tensor,
    counts: tl.tensor,
    num_tokens: tl.tensor,
    num_centroids: tl.tensor,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """A block of tokens of one head."""
    block, head = tl.program_id(0), tl.program_id(1)
    token = block * TOKENS + tl.arange(0, TOKENS)
    is_token = token < num_tokens
    row = head.to(tl.int64) * num_tokens + token
    number = tl.load(ids + row, mask=is_token, other=0).to(tl.int32)
    # Whole numbers add up to the same in any order.
    tl.atomic_add(counts + head * num_centroids + number, 1, mask=is_token)
    channel = tl.arange(0, triton.next_power_of_2(HEAD_DIM))
    mask = is_token[:, None] & (channel < HEAD_DIM)[None, :]
    at = (row * HEAD_DIM)[:, None] + channel[None, :]
    centroid = (head.to(tl.int64) * num_centroids + number) * HEAD_DIM
    c = tl.load(centroids + centroid[:, None] + channel[None, :], mask=mask, other=0.0)
    rest = tl.load(points + at, mask=mask, other=0.0) - c
    tl.store(left + at, rest, mask=mask)
    square = rest.to(tl.float64) * rest.to(tl.float64)
    energy = tl.sum(tl.sum(square, axis=1), axis=0)
    tl.store(energies + block * tl.num_programs(1) + head, energy)


def subtract(points: Tensor, centroids: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points fp32 [heads, tokens, head_dim] minus their centroids, by ids uint8 [heads, tokens].

    Returns what is left, its energy fp64 [heads], and the rows of each centroid, int32
    [heads, centroids]: all on the device, and nobody waits.
    """
    num_heads, num_tokens, head_dim = points.shape
    num_centroids = centroids.shape[1]
    num_blocks = triton.cdiv(num_tokens, _TOKENS)
    left = torch.empty_like(points)
    energies = points.new_empty((num_blocks, num_heads), dtype=torch.float64)
    counts = points.new_zeros((num_heads, num_centroids), dtype=torch.int32)
    _subtract[(num_blocks, num_heads)](
        points,
        centroids,
        ids.contiguous(),
        left,
        energies,
        counts,
        num_tokens,
        num_centroids,
        HEAD_DIM=head_dim,
        TOKENS=_TOKENS,
        num_warps=_WARPS,
    )
    return left, energies.sum(dim=0), counts


def variants() -> tuple[Variant, ...]:
    """What `subtract` launches."""
    return tuple(
        Variant(
            name=f"subtract-d{head_dim}",
            kernel=_subtract,
            signature={
                **dict.fromkeys(("points", "centroids"), "*fp32"),
                "ids": "*u8",
                "left": "*fp32",
                "energies": "*fp64",
                "counts": "*i32",
                **dict.fromkeys(("num_tokens", "num_centroids"), "i32"),
                **dict.fromkeys(("HEAD_DIM", "TOKENS"), "constexpr"),
            },
            constants={"HEAD_DIM": head_dim, "TOKENS": _TOKENS},
            aligned=("points", "centroids", "ids", "left", "energies", "counts"),
            num_warps=_WARPS,
        )
        for head_dim in (64, 128)
    )
