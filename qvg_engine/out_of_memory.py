"""Telling that memory ran out from everything else that can go wrong."""

import torch

from qvg_engine.errors import QvgError, one_line


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host; not what our own pools refuse."""
    if isinstance(error, QvgError):
        return False
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What torch raises on the host has no type of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def explain_shortage(request_id: str, error: BaseException, *, num_streams: int) -> str:
    """Why a stream ends that was the youngest in a step that memory did not suffice for."""
    return (
        f"request {request_id!r}: memory ran out in a step of {num_streams} streams, and this one "
        "was added last: lower max_streams, max_batch_tokens or kv_memory "
        f"({one_line(error)})"
    )
