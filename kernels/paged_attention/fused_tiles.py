"""What the fused attention is launched with, so that it spills on no architecture.

As compiled with Triton 3.9 and 3.6 (`python -m qvg_engine.kernels.offline --only 'fused-*'`), not
as timed.
"""

import functools
from typing import Final

import triton

from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.device import Architecture

# What spills with Triton 3.6 and not with 3.9: by kind of format, see `_kind`, and head_dim.
_SPILLS_BEFORE_3_9: Final[dict[tuple[str, int], tuple[Architecture, ...]]] = {
    ("qvg", 64): (100,),
    ("qvg", 128): (80, 89, 120),
    ("qvg-pro", 64): (100, 120),
    ("qvg-pro", 128): (89, 120),
    ("q1", 64): (100,),
    ("q1", 128): (80, 120),
    ("q4", 128): (80, 100),
}


@functools.cache
def before_3_9() -> bool:
    """Whether this Triton is older than 3.9: what was seen of 3.6 is taken to hold for it."""
    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) < (3, 9)


def _kind(pages: CodedPages) -> str:
    """The preset that takes as many registers as this format."""
    if pages.spec.stages > 2:
        return "qvg-pro"
    return f"q{pages.spec.bits}" if pages.spec.trellis else "qvg"


def tile_tokens(pages: CodedPages, architecture: Architecture) -> int | None:
    """Tokens of a tile of K or V, None if it spills with any."""
    if before_3_9() and architecture in _SPILLS_BEFORE_3_9.get((_kind(pages), pages.head_dim), ()):
        return None
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
