"""What is made on the host and read on a device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(table: NDArray[np.int32] | NDArray[np.int64], device: torch.device | str) -> Tensor:
    """A copy of `table`, of its shape and dtype, on `device`.

    On a GPU it is one copy from pinned memory in the order of the current stream, which the host
    does not wait for; the pinned memory is not used again before it is done. Several columns go
    over at once as the rows of one table: `to_device(np.stack(columns), device)`.
    """
    assert table.dtype in (np.int32, np.int64), table.dtype
    device = torch.device(device)
    on_host = torch.from_numpy(np.require(table, requirements=["C", "W"]))
    return on_host.clone() if device.type == "cpu" else send(on_host, device)


def send(x: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`x` on `device`, in its own dtype or `dtype`; `x` itself where nothing is to be done.

    From the host to a GPU as with `to_device`: the host does not wait.
    """
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        x = x.pin_memory().to(device, non_blocking=True)
    return x.to(device=device, dtype=dtype or x.dtype)
