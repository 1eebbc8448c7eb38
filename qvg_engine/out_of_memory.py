"""Telling that memory ran out from everything else that can go wrong."""

import torch

from qvg_engine.errors import QvgError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host; not what our own pools refuse."""
    if isinstance(error, QvgError):
        return False
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What torch raises on the host has no type of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
