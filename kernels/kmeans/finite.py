"""Refusing NaN and infinity by name.

On a GPU the host would have to wait for the answer. Within `deferred_checks` it does not: the flags
stay on the device until whoever began them asks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from qvg_engine.errors import NonFiniteError
from qvg_engine.kernels.gpu import runs_on_cpu
from qvg_engine.kernels.readback import Readback


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _all_finite(x: Any) -> Any:
    # A number times zero is zero, but for NaN and infinity.
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * np.float32(0)
    return total == 0


def _is_finite(x: Tensor) -> bool:
    if runs_on_cpu(x.device) and x.dtype == torch.float32 and x.is_contiguous():
        return bool(_all_finite(x.numpy().reshape(-1)))
    # Both ends are NaN if there is one: this needs one pass over x and no memory.
    return bool(torch.stack(torch.aminmax(x)).isfinite().all())


@dataclass(slots=True)
class DeferredChecks:
    """Checks of tensors on a GPU whose answers were not asked for yet.

    flags: bool [heads] each, on their devices, whether a head holds nothing but finite numbers.
    names: what each was of.
    """

    flags: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, x: Tensor, name: str) -> None:
        """Check x [heads, ...] without waiting."""
        ends = torch.aminmax(x.flatten(1), dim=1)
        self.flags.append(ends.min.isfinite() & ends.max.isfinite())
        self.names.append(name)

    def require(self, found: Sequence[Tensor] | None = None) -> None:
        """Raise `NonFiniteError` for the first that failed, and forget all.

        `found` are the flags on the host; without them this waits for the device. What was computed
        from such numbers, pages and codebooks too, is not to be used.
        """
        names, flags = self.names, self.flags
        self.names, self.flags = [], []
        found = Readback(flags).wait() if found is None else found
        for name, is_finite in zip(names, found, strict=True):
            bad = (~is_finite).nonzero()[:, 0].tolist()
            if bad:
                raise NonFiniteError(
                    f"{name}: values are NaN or infinite in heads {', '.join(map(str, bad))}; "
                    "only finite values can be clustered"
                )


_deferred: ContextVar[DeferredChecks | None] = ContextVar("deferred_checks", default=None)


@contextmanager
def deferred_checks(checks: DeferredChecks | None = None) -> Iterator[DeferredChecks]:
    """Within it, `require_finite` notes what tensors on a GPU hold instead of raising.

    `checks`: where it is noted; new ones unless given.
    """
    checks = DeferredChecks() if checks is None else checks
    token = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(token)


def require_finite(x: Tensor, name: str) -> None:
    """Raise `NonFiniteError` if x [heads, ...] holds NaN or infinity; `name` says what x is.

    Within `deferred_checks` a tensor on a GPU is only noted, and the host does not wait.
    """
    checks = _deferred.get()
    if checks is not None and not runs_on_cpu(x.device):
        checks.add(x, name)
        return
    if _is_finite(x):
        return
    bad = ~x.isfinite()
    heads = bad.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    raise NonFiniteError(
        f"{name}: {int(bad.sum()):,} of {x.numel():,} values are NaN or infinite, "
        f"in heads {', '.join(map(str, heads))}; only finite values can be clustered"
    )
