"""How much memory this machine has, and how much of it is free."""

import os

import msgspec
import torch

from qvg_engine.kernels.free_memory import free_host_bytes


class MemoryFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one device's memory."""

    device: str
    total_bytes: int
    free_bytes: int


def list_memory() -> list[MemoryFigures]:
    """The host's memory, then that of each GPU."""
    host = MemoryFigures(
        device="host",
        total_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_bytes=free_host_bytes(),
    )
    return [host, *(_gpu_memory(index) for index in range(torch.cuda.device_count()))]


def _gpu_memory(index: int) -> MemoryFigures:
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    return MemoryFigures(
        device=f"cuda:{index} {torch.cuda.get_device_name(index)}",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
    )
