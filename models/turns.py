"""Modules that take turns on a device, where it does not hold all of them.

Weights stay in host memory; whose turn it is has a copy on the device. Weights do not change, so
nothing is ever copied back.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Turns:
    """At most one of the modules that were added is on `device`."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._lock = threading.RLock()
        self._homes: dict[nn.Module, list[Tensor]] = {}
        self._present: nn.Module | None = None

    def add(self, module: nn.Module) -> None:
        """Take in a module whose weights lie in host memory."""
        self._homes[module] = [tensor.data for tensor in _tensors(module)]

    @contextmanager
    def use(self, module: nn.Module) -> Iterator[None]:
        """Have a module on the device; other threads wait for their turn."""
        with self._lock:
            if self._present is not module:
                self.clear()
                self._present = module
                for tensor, home in zip(_tensors(module), self._homes[module], strict=True):
                    tensor.data = home.to(self.device, non_blocking=True)
            yield

    def clear(self) -> None:
        """Leave the device to others."""
        with self._lock:
            if self._present is not None:
                homes = self._homes[self._present]
                for tensor, home in zip(_tensors(self._present), homes, strict=True):
                    tensor.data = home
                self._present = None


@contextmanager
def turn(turns: Turns | None, module: nn.Module) -> Iterator[None]:
    """`turns.use`, or nothing for a module that stays where it is."""
    if turns is None:
        yield
        return
    with turns.use(module):
        yield


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
