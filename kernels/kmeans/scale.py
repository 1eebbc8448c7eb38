"""Scaling that costs no precision."""

import math


def unit_scale(largest: float) -> float:
    """The power of two that brings magnitudes of up to `largest` below 1, above 1/2 if it can.

    1 for 0. Multiplied in fp64, a finite fp32 number stays exact.
    """
    return math.ldexp(1.0, -math.frexp(largest)[1])
