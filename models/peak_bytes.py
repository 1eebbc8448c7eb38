"""How much memory a computation holds at its widest, counted on the meta device."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that were made within it and are still held.

    `most` is their peak. What a kernel takes inside is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if not isinstance(leaf, Tensor):
                continue
            storage = _storage(leaf)
            # A view of what was there before belongs to nobody here.
            if storage in given and storage not in self._holders:
                continue
            num_bytes = leaf.untyped_storage().nbytes()
            self._hold(storage, num_bytes)
            weakref.finalize(leaf, self._drop, storage, num_bytes)
        return out

    def _hold(self, storage: int, num_bytes: int) -> None:
        held = self._holders.get(storage, 0)
        self._holders[storage] = held + 1
        if not held:
            self._now += num_bytes
            self.most = max(self.most, self._now)

    def _drop(self, storage: int, num_bytes: int) -> None:
        self._holders[storage] -= 1
        if not self._holders[storage]:
            del self._holders[storage]
            self._now -= num_bytes


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
