"""What k-means gives back."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Assignment(NamedTuple):
    """The nearest centroid of every token.

    ids: uint8 [heads, tokens]; of centroids that are equally near, the lowest.
    squared_distances: fp32 [heads, tokens], from the token to that centroid.
    """

    ids: Tensor
    squared_distances: Tensor


@dataclass(frozen=True, slots=True)
class Clusters:
    """Centroids, and the tokens that belong to them; every head on its own.

    centroids: fp32 [heads, centroids, head_dim].
    ids: uint8 [heads, tokens], those of `assign` with just these centroids.
    counts: int64 [heads, centroids], tokens of each centroid; may be 0.
    inertia: fp64 [heads], the sum of the squared distances.
    iterations: int64 [heads], how often the centroids have moved.
    """

    centroids: Tensor
    ids: Tensor
    counts: Tensor
    inertia: Tensor
    iterations: Tensor
