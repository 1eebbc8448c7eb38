"""The rotation by the fastest kernel there is for a tensor."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels import gpu as triton_gpu
from qvg_engine.kernels.rope import cpu, reference
from qvg_engine.kernels.rope.grid import RopeGrid


def rotate(x: Tensor, grid: RopeGrid, positions: NDArray[np.int64]) -> Tensor:
    """Rotate x [tokens, heads, head_dim] to the token numbers `positions` [tokens], all >= 0.

    Half-split channel order, rounded once; returns a new tensor of x's dtype.
    """
    if triton_gpu.runs_on_cpu(x.device) and x.dtype in cpu.SUPPORTED_DTYPES:
        return cpu.rotate(x, grid, positions)
    if triton_gpu.supports(x):
        from qvg_engine.kernels.rope import gpu

        if x.dtype in gpu.SUPPORTED_DTYPES:
            return gpu.rotate(x, grid, positions)
    return reference.rotate(x, *grid.rows(positions))
