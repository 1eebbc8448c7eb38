"""The centroids that a fit starts from: k-means++, by the fastest kernel there is."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.gpu import runs_on_cpu
from qvg_engine.kernels.gpu import supports as gpu_supports
from qvg_engine.kernels.kmeans import cpu_seeding, reference
from qvg_engine.kernels.kmeans.finite import require_finite
from qvg_engine.kernels.kmeans.settings import MAX_CENTROIDS

_MASK_64 = 2**64 - 1
# Enough candidates a centroid, where there are more tokens than that.
_SAMPLES_PER_CENTROID = 16
_MIN_SAMPLES = 2048


def initial_centroids(
    points: Tensor,
    num_centroids: int,
    *,
    seed: int,
    name: str = "points",
    checked: bool = False,
) -> Tensor:
    """Pick points as centroids, each with a chance in proportion to its squared distance.

    Args:
        points: [heads, tokens, head_dim], fp32, bf16 or fp16, at least one token.
        num_centroids: 1 to 256.
        seed: any whole number, of which 128 bits count.
        name: what an error calls the points.
        checked: whether the caller knows that they are finite.

    The distance is that from the nearest point picked before. Of more than
    max(16 * num_centroids, 2048) tokens only that many, evenly spaced, are candidates. Where all
    candidates lie on picked points, as when there are fewer than `num_centroids`, points are picked
    again, all with the same chance.

    Returns fp32 [heads, num_centroids, head_dim]. Head h depends on its points, `seed` and h, and
    is the same on every machine and device, with whatever other heads. Raises `NonFiniteError` for
    NaN or infinity.
    """
    assert points.dim() == 3, points.shape
    assert points.numel(), points.shape
    assert points.dtype in (torch.float32, torch.bfloat16, torch.float16), points.dtype
    assert 1 <= num_centroids <= MAX_CENTROIDS, num_centroids
    if not checked:
        require_finite(points, name)
    num_heads, _, head_dim = points.shape
    sample = _sample(points, max(_SAMPLES_PER_CENTROID * num_centroids, _MIN_SAMPLES))
    uniforms = np.stack([_uniforms(seed, head, num_centroids) for head in range(num_heads)])
    picks = _pick(sample, uniforms)
    return sample.gather(1, picks[:, :, None].expand(-1, -1, head_dim))


def _pick(sample: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
    if gpu_supports(sample):
        from qvg_engine.kernels.kmeans import gpu_seeding

        return gpu_seeding.pick(sample, uniforms)
    kernel = cpu_seeding.pick if runs_on_cpu(sample.device) else reference.pick
    return kernel(sample, uniforms)


def _sample(points: Tensor, count: int) -> Tensor:
    """At most `count` of the tokens, evenly spaced, in fp32 and contiguous."""
    num_tokens = points.shape[1]
    if num_tokens > count:
        points = points[:, torch.arange(count, device=points.device) * num_tokens // count]
    return points.float().contiguous()


def _uniforms(seed: int, head: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that seed and head decide."""
    key = np.array([seed & _MASK_64, (seed >> 64) & _MASK_64], dtype=np.uint64)
    # The last word is 0 where the engine draws noise, so that one seed can serve both.
    counter = np.array([0, head, 0, 1], dtype=np.uint64)
    # NumPy promises the raw bits for all versions, but not what it makes of them.
    bits = np.random.Philox(key=key, counter=counter).random_raw(count)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
