"""What is done to Q, K, V and the output when pages are read."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.rope import RopeGrid, rotate


class ReadTransform(Protocol):
    """Four functions of ([tokens, heads, head_dim], token numbers [tokens]).

    Each returns a tensor of the shape and dtype it was given (the same one if there is nothing to
    do) and leaves its argument as it is. None may mix tokens: they see parts of a sequence.
    """

    @property
    def rope(self) -> RopeGrid | None:
        """Set if `keys` is this rotation and `values` the identity.

        Decode kernels then rotate on the way; otherwise `keys` and `values` are applied to decoded
        rows.
        """

    def queries(self, queries: Tensor, positions: NDArray[np.int64]) -> Tensor: ...
    def keys(self, keys: Tensor, positions: NDArray[np.int64]) -> Tensor: ...
    def values(self, values: Tensor, positions: NDArray[np.int64]) -> Tensor: ...
    def output(self, output: Tensor, positions: NDArray[np.int64]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class IdentityTransform:
    """Attention on Q, K and V as they are."""

    @property
    def rope(self) -> None:
        return None

    def queries(self, queries: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return queries

    def keys(self, keys: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return keys

    def values(self, values: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return values

    def output(self, output: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return output


@dataclass(frozen=True, slots=True)
class RopeTransform:
    """Rotate Q and K to their tokens' places in the grid."""

    grid: RopeGrid

    @property
    def rope(self) -> RopeGrid:
        return self.grid

    def queries(self, queries: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return rotate(queries, self.grid, positions)

    def keys(self, keys: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return rotate(keys, self.grid, positions)

    def values(self, values: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return values

    def output(self, output: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return output


def rotates_only(transform: ReadTransform) -> bool:
    """Whether rows are rotated or left as they are: what kernels can do while they decode."""
    return transform.rope is not None or isinstance(transform, IdentityTransform)
