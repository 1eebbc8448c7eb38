"""Refusing NaN and infinity by name."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from qvg_engine.errors import NonFiniteError


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _all_finite(x: Any) -> Any:
    # A number times zero is zero, but for NaN and infinity.
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * np.float32(0)
    return total == 0


def _is_finite(x: Tensor) -> bool:
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous():
        return bool(_all_finite(x.numpy().reshape(-1)))
    # Both ends are NaN if there is one: this needs one pass over x and no memory.
    return bool(torch.stack(torch.aminmax(x)).isfinite().all())


def require_finite(x: Tensor, name: str) -> None:
    """Raise `NonFiniteError` if x [heads, ...] holds NaN or infinity; `name` says what x is."""
    if _is_finite(x):
        return
    bad = ~x.isfinite()
    heads = bad.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    raise NonFiniteError(
        f"{name}: {int(bad.sum()):,} of {x.numel():,} values are NaN or infinite, "
        f"in heads {', '.join(map(str, heads))}; only finite values can be clustered"
    )
