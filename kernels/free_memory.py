"""How much memory is free on a device, and what is said where it is not enough."""

import os
from pathlib import Path

import torch

from qvg_engine.errors import ConfigError


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on a GPU, or on the host without swapping; elsewhere 0.

    On a GPU, what torch keeps for tensors that are gone counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    return free_host_bytes() if device.type == "cpu" else 0


def free_host_bytes() -> int:
    """Free memory of the host, and caches that can be dropped."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def usable_bytes(num_bytes: int, free: int) -> int:
    """What to give instead, where `num_bytes` were refused: nine tenths of what is free.

    The rest is for what a network's layers need while they compute. Less than was refused, also if
    enough seems to be free.
    """
    return min(free, num_bytes) * 9 // 10


def refuse(
    what: str, num_bytes: int, *, free: int, device: torch.device, advice: str
) -> ConfigError:
    """The error for `num_bytes` that could not be allocated, of which `free` were free."""
    return ConfigError(
        f"{what} of {num_bytes:,} bytes cannot be allocated on {device}, which has {free:,} bytes "
        f"free: {advice}"
    )
