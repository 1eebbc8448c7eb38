"""Several read transforms over the same pages."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.paged_attention.transform import ReadTransform
from qvg_engine.kernels.rope import RopeGrid


@dataclass(frozen=True, slots=True)
class TransformSet:
    """Transforms under which one pass reads the same keys and values, an output for each.

    Where a single transform is asked for, it is the first one.
    """

    parts: tuple[ReadTransform, ...]

    def __post_init__(self) -> None:
        assert self.parts, "a set has at least one transform"

    @property
    def rope(self) -> RopeGrid | None:
        return self.parts[0].rope

    def queries(self, queries: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self.parts[0].queries(queries, positions)

    def keys(self, keys: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self.parts[0].keys(keys, positions)

    def values(self, values: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self.parts[0].values(values, positions)

    def output(self, output: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self.parts[0].output(output, positions)


def transforms_in(transform: ReadTransform) -> tuple[ReadTransform, ...]:
    """The transforms of a set, or the transform itself."""
    return transform.parts if isinstance(transform, TransformSet) else (transform,)
