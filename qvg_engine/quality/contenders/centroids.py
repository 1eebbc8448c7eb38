"""Centroids as they are stored: in 16 bits, or in 8, also with numbers for each channel."""

from typing import Literal

import torch
from torch import Tensor

from qvg_engine.kernels.codec.e4m3 import LARGEST, from_e4m3, to_e4m3

CentroidType = Literal["float16", "e4m3", "e4m3-scaled", "int8"]

CENTROID_BITS: dict[CentroidType, tuple[int, int]] = {
    "float16": (16, 0),
    "e4m3": (8, 0),
    "e4m3-scaled": (8, 8),
    "int8": (8, 32),
}
"""Bits of a centroid's channel, and of what all centroids of a head and stage share of it."""

_STEPS = 255


def stored_centroids(centroids: Tensor, centroid_type: CentroidType) -> Tensor:
    """Centroids fp32 [heads, centroids, head_dim] as they are read again, a new tensor.

    * "float16", "e4m3": saturating.
    * "e4m3-scaled": times a power of two for every channel, a byte, that brings the largest to
      224 to 448.
    * "int8": 256 even levels from the least to the largest of every channel; scale and zero point
      in float16.
    """
    if centroid_type == "float16":
        return _half(centroids)
    if centroid_type == "e4m3":
        return from_e4m3(to_e4m3(centroids))
    if centroid_type == "e4m3-scaled":
        peak = centroids.abs().amax(dim=1, keepdim=True)
        exponent = torch.frexp(peak / LARGEST).exponent.clamp(-126, 127)
        scale = torch.ldexp(torch.ones_like(peak), exponent)
        return from_e4m3(to_e4m3(centroids / scale)) * scale
    low, high = centroids.aminmax(dim=1, keepdim=True)
    zero = _half(low)
    scale = _half(((high - zero) / _STEPS).clamp(min=0))
    codes = ((centroids - zero) / torch.where(scale > 0, scale, 1.0)).round().clamp(0, _STEPS)
    return codes * scale + zero


def _half(x: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest).half().float()
