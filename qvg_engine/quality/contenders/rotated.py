"""Rotating the channels of a head before they are stored, as QuaRot does."""

import msgspec
import torch
from torch import Tensor

from qvg_engine.errors import ConfigError
from qvg_engine.quality.contender import Contender, RoundTrip


class RotatedContender(msgspec.Struct, frozen=True, kw_only=True):
    """Another contender in the basis of the Hadamard matrix, orthonormal, over a head's channels.

    Every rotated channel is a mean of all channels with signs, so that one that stands out no
    longer widens the grid of its group. Around rounding to nearest this is QuaRot; around
    centroids it is a rotation before clustering. It stores no more than `inner` does.

    The rotation of K does not commute with RoPE: it has to follow RoPE, or be undone before. Here
    rows are turned back as they are read, before RoPE, which stays as it is; an engine would pay a
    transform for every row of K that it reads. (V's can be undone once in attention's output.)
    K comes in the engine's order of channels. In the published order the rotated channels would be
    the same in another order, which groups of channels undo as they do without a rotation.
    """

    name: str
    inner: Contender

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        """See `Contender`. Raises `ConfigError` unless the head's size is a power of 2."""
        turned = self.inner.round_trip(
            hadamard(rows), is_key=is_key, seed=seed, centroids=centroids
        )
        return RoundTrip(
            rows=hadamard(turned.rows), bits=turned.bits, shared_bits=turned.shared_bits
        )


def hadamard(x: Tensor) -> Tensor:
    """x [..., head_dim] times the orthonormal Hadamard matrix, its own inverse; a new tensor.

    Raises `ConfigError` unless head_dim is a power of 2.
    """
    head_dim = x.shape[-1]
    if head_dim & (head_dim - 1):
        raise ConfigError(f"head_dim is {head_dim}: a Hadamard rotation needs a power of 2")
    turned: Tensor = x.reshape(-1, head_dim) * head_dim**-0.5
    step = 1
    while step < head_dim:
        low, high = turned.view(-1, head_dim // (2 * step), 2, step).unbind(2)
        turned = torch.stack((low + high, low - high), dim=2).view(-1, head_dim)
        step *= 2
    return turned.view(x.shape)
