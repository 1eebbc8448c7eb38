"""Modules that take turns on a device, where it does not hold all of them.

Weights stay in host memory; whose turn it is has a copy on the device. Weights do not change, so
nothing is ever copied back.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """Where a module keeps a tensor, and that tensor in host memory."""

    table: dict[str, Any]
    name: str
    home: Tensor

    def put(self, tensor: Tensor) -> None:
        """Have the module use this tensor."""
        is_parameter = isinstance(self.home, nn.Parameter)
        self.table[self.name] = (
            nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        )


class Turns:
    """At most one of the modules that were added is on `device`."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._lock = threading.RLock()
        self._homes: dict[nn.Module, list[Place]] = {}
        self._present: nn.Module | None = None

    def add(self, module: nn.Module) -> None:
        """Take in a module whose weights lie in host memory."""
        self._homes[module] = [
            Place(table, name, tensor)
            for part in module.modules()
            for table in (part._parameters, part._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]

    @contextmanager
    def use(self, module: nn.Module) -> Iterator[None]:
        """Have a module on the device; other threads wait for their turn."""
        with self._lock:
            if self._present is not module:
                self.clear()
                self._present = module
                copies: dict[int, Tensor] = {}
                for place in self._homes[module]:
                    # Tied weights are one tensor under two names.
                    key = place.home.data_ptr()
                    if key not in copies:
                        copies[key] = place.home.to(self.device, non_blocking=True)
                    place.put(copies[key])
            yield

    def clear(self) -> None:
        """Leave the device to others."""
        with self._lock:
            if self._present is not None:
                for place in self._homes[self._present]:
                    place.put(place.home)
                self._present = None


@contextmanager
def turn(turns: Turns | None, module: nn.Module) -> Iterator[None]:
    """`turns.use`, or nothing for a module that stays where it is."""
    if turns is None:
        yield
        return
    with turns.use(module):
        yield
