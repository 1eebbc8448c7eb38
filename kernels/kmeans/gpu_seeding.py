"""K-means++ on a GPU, in Triton: equal to the other kernels bit by bit.

A head is the work of one program, from the first pick to the last, as each depends on the one
before. So it takes a small part of a device, but never the host. Sums of squares are compiled
without fused multiply-adds, which round less often than the CPU does.
"""

import math

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant

_CHANNELS = 8
_WARPS = 16


@triton.jit
def _draw(
    nearest: tl.tensor, is_point: tl.tensor, uniform: tl.tensor, num_points: tl.tensor
) -> tl.tensor:
    """The point, int32, at the part `uniform` of the sum of `nearest` fp32 [points]."""
    largest = tl.max(tl.where(is_point, nearest, 0.0), axis=0).to(tl.float64)
    # A power of two by its bits. Of zero it does not matter.
    exponent = (largest.to(tl.int64, bitcast=True) >> 52) - 1022
    factor = ((1023 + 40 - exponent) << 52).to(tl.float64, bitcast=True)
    weight = (tl.where(is_point, nearest, 0.0).to(tl.float64) * factor).to(tl.int64)
    up_to = tl.cumsum(weight, axis=0)
    total = tl.sum(weight, axis=0)
    target = tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)
    found = tl.sum((up_to <= target).to(tl.int32), axis=0)
    any_point = (uniform * num_points.to(tl.float64)).to(tl.int32)
    found = tl.where(total > 0, found, any_point)
    # Where a number is NaN, nothing is right, but still a point.
    return tl.minimum(tl.maximum(found, 0), num_points - 1)


@triton.jit(do_not_specialize=["num_points", "num_picks", "head_dim"])
def _pick(
    channels: tl.tensor,
    uniforms: tl.tensor,
    picks: tl.tensor,
    num_points: tl.tensor,
    num_picks: tl.tensor,
    head_dim: tl.tensor,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """All picks of one head; channels: fp32 [heads, head_dim, points], CHANNELS a divisor."""
    head = tl.program_id(0)
    channels += head.to(tl.int64) * head_dim * num_points
    uniforms += head * num_picks
    picks += head * num_picks
    point = tl.arange(0, POINTS)
    is_point = point < num_points
    nearest = tl.full([POINTS], float("inf"), tl.float32)
    last = (tl.load(uniforms) * num_points.to(tl.float64)).to(tl.int32)
    tl.store(picks, last.to(tl.int64))
    for index in range(1, num_picks):
        distance = tl.zeros([POINTS], tl.float32)
        for first in range(0, head_dim, CHANNELS):
            # Several at a time, so that loads do not wait for one another.
            for i in tl.static_range(CHANNELS):
                row = channels + (first + i) * num_points
                left = tl.load(row + point, mask=is_point, other=0.0) - tl.load(row + last)
                distance += left * left
        nearest = tl.minimum(nearest, distance)
        last = _draw(nearest, is_point, tl.load(uniforms + index), num_points)
        tl.store(picks + index, last.to(tl.int64))


def pick(points: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    """See `cpu_seeding.pick`."""
    num_heads, num_points, head_dim = points.shape
    num_picks = uniforms.shape[1]
    picks = torch.empty(uniforms.shape, dtype=torch.int64, device=points.device)
    # The bits of the numbers, as tables are of whole numbers.
    draws = to_device(uniforms.view(np.int64), points.device).view(torch.float64)
    _pick[(num_heads,)](
        _to_unit_scale(points).transpose(1, 2).contiguous(),
        draws,
        picks,
        num_points,
        num_picks,
        head_dim,
        POINTS=triton.next_power_of_2(num_points),
        CHANNELS=math.gcd(head_dim, _CHANNELS),
        num_warps=_WARPS,
        enable_fp_fusion=False,
    )
    return picks


def _to_unit_scale(x: Tensor) -> Tensor:
    """See `reference._to_unit_scale`."""
    largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=(1, 2))
    exponent = torch.frexp(largest).exponent.int()
    # Two factors: that of tiny numbers may exceed fp32's range.
    one = exponent.clamp(-126, 126)
    for part in (one, exponent - one):
        x = x * ((127 - part) << 23).view(torch.float32)[:, None, None]
    return x


def variants() -> tuple[Variant, ...]:
    """What `pick` launches for 256 centroids, and for fewer of them."""
    return tuple(
        Variant(
            name=f"kmeans-pick-{num_points}",
            kernel=_pick,
            signature={
                "channels": "*fp32",
                "uniforms": "*fp64",
                "picks": "*i64",
                **dict.fromkeys(("num_points", "num_picks", "head_dim"), "i32"),
                **dict.fromkeys(("POINTS", "CHANNELS"), "constexpr"),
            },
            constants={"POINTS": num_points, "CHANNELS": _CHANNELS},
            aligned=("channels", "uniforms", "picks"),
            num_warps=_WARPS,
            fp_fusion=False,
        )
        for num_points in (2048, 4096)
    )
