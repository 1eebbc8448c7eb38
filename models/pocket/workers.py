"""Processes that train one model together, each on clips of its own.

Started by `python -m torch.distributed.run --nproc-per-node N -m ...`; without it there is one
worker. On CPUs one worker a core is faster than one process with as many threads: half of a small
network's time goes to work that does not split well.
"""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import Tensor, distributed


class Workers:
    """The processes of a training, seen from one of them."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @classmethod
    def join(cls) -> "Workers":
        """Meet the other processes that the launcher started, if it started any."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        # The first worker may have a pool of clips to draw before the others can begin.
        distributed.init_process_group("gloo", timeout=timedelta(hours=2))
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes checkpoints."""
        return self.rank == 0

    def average(self, values: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the workers; all get the same bits."""
        if self.count == 1:
            return
        tensors = list(values)
        flat = torch.cat([value.flatten().float() for value in tensors]).div_(self.count)
        distributed.all_reduce(flat)
        for value, mean in zip(
            tensors, flat.split([value.numel() for value in tensors]), strict=True
        ):
            value.copy_(mean.view_as(value))

    def agree(self, value: float) -> float:
        """The first worker's value."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def wait(self) -> None:
        """Return when all workers have come here."""
        if self.count > 1:
            distributed.barrier()
