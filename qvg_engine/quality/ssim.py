"""Structural similarity of frames, as Wang, Bovik, Sheikh and Simoncelli define it (2004).

Colour by colour, with Gaussian windows of 11 by 11 pixels and a standard deviation of 1.5, at all
places where a window lies within the frame; K1 = 0.01, K2 = 0.03, and a range of 255.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

_WINDOW, _DEVIATION = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(frames: NDArray[np.uint8], exact: NDArray[np.uint8]) -> float:
    """Mean over all frames [T, H, W, 3], colours and places; 1 for equal frames."""
    assert frames.shape == exact.shape, (frames.shape, exact.shape)
    assert min(frames.shape[1:3]) >= _WINDOW, frames.shape
    x, y = _planes(frames), _planes(exact)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x * mean_x
    var_y = _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    whole = (mean_x * mean_x + mean_y * mean_y + _C1) * (var_x + var_y + _C2)
    return float((alike / whole).mean())


def _planes(frames: NDArray[np.uint8]) -> Tensor:
    """fp64 [T * 3, 1, H, W]."""
    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).double()
    return planes.reshape(-1, 1, *frames.shape[1:3])


def _blurred(planes: Tensor) -> Tensor:
    """Weighted means, of the places where the window fits."""
    offset = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-offset.square() / (2 * _DEVIATION**2))
    weights /= weights.sum()
    rows = conv2d(planes, weights.reshape(1, 1, -1, 1))
    return conv2d(rows, weights.reshape(1, 1, 1, -1))
