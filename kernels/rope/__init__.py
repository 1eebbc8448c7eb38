"""Rotary position embedding over time, height and width.

Inside the engine the channels of a head are in half-split order: pair i is (i, i + head_dim / 2),
the pairs of time come first, then those of height, then those of width. `layout.py` has the
permutation from and to the interleaved order of published weights.
"""

from qvg_engine.kernels.rope.grid import RopeGrid
from qvg_engine.kernels.rope.rotate import rotate
from qvg_engine.kernels.rope.tables import RopeTables

__all__ = ["RopeGrid", "RopeTables", "rotate"]
