"""Results on their way from a device to the host, which does not wait for them until it asks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Readback:
    """Copies of tensors, of any shapes and dtypes, all on one device.

    On a GPU making one waits for nothing: a single copy to pinned memory is queued behind what
    computes the tensors. Elsewhere the tensors themselves are kept.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._event: torch.cuda.Event | None = None
        if not any(x.is_cuda for x in tensors):
            return
        assert len({x.device for x in tensors}) == 1, [x.device for x in tensors]
        packed = pack(tensors)
        on_host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
        on_host.copy_(packed, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(packed.device))
        # The tensors may be gone by then; what they looked like is asked of ones without content.
        shapes = [torch.empty(x.shape, dtype=x.dtype, device="meta") for x in tensors]
        self._tensors, self._packed = tuple(shapes), on_host

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors on the host, once they are there; any number of times."""
        if self._event is not None:
            self._event.synchronize()
            # Pinned memory is scarce: it goes back, whoever keeps the results.
            self._tensors = unpack(self._packed.clone(), self._tensors)
            del self._packed
            self._event = None
        return self._tensors


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of all, uint8 [bytes], on their device; wide elements first, so all are aligned."""
    parts = [tensors[i].contiguous().flatten().view(torch.uint8) for i in _by_width(tensors)]
    return torch.cat(parts)


def unpack(packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `pack` was given; of `like`, shapes and dtypes count."""
    found: list[Tensor] = list(like)
    start = 0
    for i in _by_width(like):
        size = math.prod(like[i].shape) * like[i].dtype.itemsize
        found[i] = packed[start : start + size].view(like[i].dtype).view(like[i].shape)
        start += size
    assert start == len(packed), (start, packed.shape)
    return tuple(found)


def _by_width(tensors: Sequence[Tensor]) -> list[int]:
    return sorted(range(len(tensors)), key=lambda i: -tensors[i].dtype.itemsize)
