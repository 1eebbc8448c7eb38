"""Refusing NaN and infinity by name."""

import torch
from torch import Tensor

from qvg_engine.errors import NonFiniteError


def require_finite(x: Tensor, name: str) -> None:
    """Raise `NonFiniteError` if x [heads, ...] holds NaN or infinity; `name` says what x is."""
    # Both ends are NaN if there is one: this needs one pass over x and no memory.
    if torch.stack(torch.aminmax(x)).isfinite().all():
        return
    bad = ~x.isfinite()
    heads = bad.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    raise NonFiniteError(
        f"{name}: {int(bad.sum()):,} of {x.numel():,} values are NaN or infinite, "
        f"in heads {', '.join(map(str, heads))}; only finite values can be clustered"
    )
