"""What the fused attention is launched with, so that it spills on no architecture.

As compiled with Triton 3.9 (`python -m qvg_engine.kernels.offline --only 'fused-*'`), not as timed.
"""

from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.device import Architecture


def tile_tokens(pages: CodedPages, architecture: Architecture) -> int | None:
    """Tokens of a tile of K or V, None if it spills with any."""
    has_one_stage = pages.spec.bits == 2 and pages.spec.stages <= 1
    if pages.spec.stages > 2 and architecture == 80:
        return None
    if pages.head_dim == 64:
        if has_one_stage and pages.spec.trellis:
            return None if architecture == 100 else 32
        return 16
    if pages.head_dim != 128:
        return None
    if pages.spec.stages > 2:
        return 32 if architecture == 100 else 16
    return 32 if has_one_stage else 16


def num_warps(pages: CodedPages, architecture: Architecture) -> int:
    """Warps of a program."""
    return 4 if architecture == 100 and pages.spec.bits == 1 and pages.head_dim == 128 else 8
