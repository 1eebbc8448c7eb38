"""How much memory this machine has, and how much of it is free."""

import os
from pathlib import Path

import msgspec
import torch


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
        free_bytes=_available_bytes(),
    )
    return [host, *(_gpu_memory(index) for index in range(torch.cuda.device_count()))]


def _gpu_memory(index: int) -> MemoryFigures:
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    return MemoryFigures(
        device=f"cuda:{index} {torch.cuda.get_device_name(index)}",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
    )


def _available_bytes() -> int:
    """What can be allocated without swapping: free memory and caches that can be dropped."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
