"""How rows of K or V become centroid ids, low-bit codes and scales, and the bytes that this takes.

Knows sizes and numbers only, no tensors.
"""

import functools
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np

from qvg_engine.checks import check_choice, check_range
from qvg_engine.errors import ConfigError

SPREAD_FACTORS = (1.0, 0.84375, 1.1875)
PEAK_FACTORS = (1.0, 0.84375)
"""The scales that the rule "searched" tries, see `CodecSpec`.

Against every E4M3 scale there is, they cost 0.03 dB or less with four levels, and 0.35 dB or less
with sixteen, on groups of 16 and 64 from normal, Laplace and t (3 degrees) distributions.
"""
MAX_STAGES, MAX_CENTROIDS, MAX_GROUP, MAX_LEVEL = 8, 256, 65_536, 64.0

_SCALE_BYTES = {"e4m3": 1, "float16": 2}
_CENTROID_BYTES = {"e4m3": 1, "float16": 2, "bfloat16": 2, "float32": 4}


class CodecSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a row of one head of one token is stored; every property is a field.

    A row minus one centroid of each of the `stages` leaves the residual. Where `channel_widths` is
    set, channels are divided by their widths. Each `group` of channels has a scale; a channel's
    code, of `bits` bits, says which of `levels` times the scale is nearest. A row decodes to
    level * scale (* width) + centroid of stage 1 + centroid of stage 2 ..., added in that order in
    fp32.

    * `stages`: 0 to 8, 0 for no centroids; `centroids`: 1 to 256, most that a stage may have.
    * `bits`: 1, 2 or 4; `levels`: 2 to 2**bits ascending numbers from -64 to 64.
    * `trellis`: which level a code means depends on the codes before, see `trellis.py`. There are
      2**(bits + 1) levels then, and -level is one for every level.
    * `group`: consecutive channels of one token that share a scale; see `for_head_dim`.
    * `scale_rule`: "absmax" makes the largest level the group's largest magnitude. "spread" takes
      the best scale for normally distributed channels of the group's energy. "searched"
      tries some scales and keeps the one with the least squared error, weighted by the widths:
      `SPREAD_FACTORS` times the best scale for normally distributed channels of the group's
      energy, `PEAK_FACTORS` times that of "absmax", and then, for the best one's levels l, the
      scale <r, l> / <l, l>. The first of equals wins. With a trellis it tries the first of these,
      that of "absmax" and their geometric mean for all groups of a row, and then for each group the
      last, from the levels that were best for it; the row with the least error wins.
    * `scale_type`: "e4m3" or "float16", both saturating; scales are rounded before they are used.
    * `channel_widths`: whether a codebook has a width for every channel of every head.
    * `centroid_type`: of centroids and widths: "e4m3", "float16", "bfloat16" or "float32", all
      saturating. Ids are of the centroids as they are stored, so what rounding them takes away is
      left to the codes. In a byte, widths are relative to the head's root mean square.

    Raises `ConfigError` naming field, value and range.
    """

    stages: int
    centroids: int
    bits: int
    levels: tuple[float, ...]
    group: int
    scale_rule: Literal["absmax", "spread", "searched"]
    scale_type: Literal["e4m3", "float16"]
    channel_widths: bool
    centroid_type: Literal["e4m3", "float16", "bfloat16", "float32"]
    trellis: bool = False

    def __post_init__(self) -> None:
        check_range("stages", self.stages, 0, MAX_STAGES)
        check_range("centroids", self.centroids, 1, MAX_CENTROIDS)
        check_choice("bits", self.bits, (1, 2, 4))
        check_choice("trellis", self.trellis, (False, True))
        _check_levels(self.levels, self.bits, is_trellis=self.trellis)
        check_range("group", self.group, 1, MAX_GROUP)
        check_choice("scale_rule", self.scale_rule, ("absmax", "spread", "searched"))
        check_choice("scale_type", self.scale_type, tuple(_SCALE_BYTES))
        check_choice("channel_widths", self.channel_widths, (False, True))
        check_choice("centroid_type", self.centroid_type, tuple(_CENTROID_BYTES))

    @property
    def top(self) -> float:
        """The largest magnitude of a level."""
        return max(-self.levels[0], self.levels[-1])

    @property
    def zero_code(self) -> int:
        """The code of the level nearest to zero, the lower one of two."""
        return min(range(len(self.levels)), key=lambda code: abs(self.levels[code]))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """fp32 numbers: the code of r is how many of them r / scale exceeds.

        They lie half-way between levels; exactly half-way is nearer to the level away from zero,
        or to the lower one. Between -1, 0 and 1 the last fp32 number short of 1/2 counts as 1/2:
        the published rule, trunc(y + copysign(1/2, y)) in fp32, rounds the sum up to 1.
        """
        return tuple(_threshold(low, high) for low, high in pairwise(self.levels))

    @property
    def normal_scale(self) -> float:
        """The scale with the least squared error for normally distributed numbers.

        With a trellis it is that of the means of pairs of levels, to within a few percent.
        """
        if not self.trellis:
            return _normal_scale(self.levels)
        pairs = zip(self.levels[::2], self.levels[1::2], strict=True)
        return _normal_scale(tuple((low + high) / 2 for low, high in pairs))

    def for_head_dim(self, head_dim: int) -> "CodecSpec":
        """This spec for heads of `head_dim` channels: a smaller head is one group.

        Raises `ConfigError` if a larger head is not a whole number of groups, or codes of a
        trellis do not fill whole bytes.
        """
        spec = msgspec.structs.replace(self, group=head_dim) if head_dim < self.group else self
        spec.num_groups(head_dim)
        if self.trellis and head_dim * self.bits % 8:
            raise ConfigError(
                f"trellis is set: {head_dim} codes of {self.bits} bits must fill whole bytes"
            )
        return spec

    def num_groups(self, head_dim: int) -> int:
        """Scales of one row; `ConfigError` if it is not a whole number of groups."""
        if head_dim % self.group:
            raise ConfigError(
                f"group is {self.group}: give a divisor of the head's {head_dim} channels"
            )
        return head_dim // self.group

    def code_bytes(self, head_dim: int) -> int:
        """Bytes of the codes of one row."""
        return -(-head_dim * self.bits // 8)

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of one row, one head of one token: codes, scales and ids."""
        scales = self.num_groups(head_dim) * _SCALE_BYTES[self.scale_type]
        return self.code_bytes(head_dim) + scales + self.stages

    def bits_per_element(self, head_dim: int) -> float:
        """Bits of codes, scales and ids an element, without codebooks."""
        return 8 * self.row_bytes(head_dim) / head_dim

    @property
    def centroid_bytes(self) -> int:
        """Bytes of one number of a codebook."""
        return _CENTROID_BYTES[self.centroid_type]

    def codebook_bytes(self, heads: int, head_dim: int, centroids: int) -> int:
        """Bytes of one codebook: `centroids` a stage, and the widths."""
        rows = self.stages * centroids + self.channel_widths
        return heads * head_dim * rows * self.centroid_bytes


def _threshold(low: float, high: float) -> float:
    middle = np.float32((low + high) / 2)
    zero = np.float32(0)
    if abs(middle) == 0.5 and low in (-1, 0) and high in (0, 1):
        middle = np.nextafter(middle, zero)
    return float(np.nextafter(middle, zero) if middle > 0 else middle)


@functools.cache
def _normal_scale(levels: tuple[float, ...]) -> float:
    normal = NormalDist()
    scale = 1.0
    # Lloyd's algorithm with one parameter: the best scale for the intervals, and anew.
    for _ in range(200):
        inner = [scale * (low + high) / 2 for low, high in pairwise(levels)]
        below = [0.0, *map(normal.cdf, inner), 1.0]
        density = [0.0, *map(normal.pdf, inner), 0.0]
        along = sum(x * (density[i] - density[i + 1]) for i, x in enumerate(levels))
        scale = along / sum(x * x * (below[i + 1] - below[i]) for i, x in enumerate(levels))
    return scale


def _check_levels(levels: tuple[float, ...], bits: int, *, is_trellis: bool) -> None:
    fewest, most = (2 ** (bits + 1),) * 2 if is_trellis else (2, 2**bits)
    if (
        not isinstance(levels, tuple)
        or not fewest <= len(levels) <= most
        or any(type(x) not in (int, float) or not abs(x) <= MAX_LEVEL for x in levels)
        or not (np.diff(np.array(levels, np.float32)) > 0).all()
        or (is_trellis and any(x != -y for x, y in zip(levels, levels[::-1], strict=True)))
    ):
        number = f"{most} symmetric" if is_trellis else f"2 to {most}"
        raise ConfigError(
            f"levels is {levels!r}: give {number} ascending numbers from "
            f"{-MAX_LEVEL:g} to {MAX_LEVEL:g}, as a tuple"
        )


def _symmetric(positive: tuple[int, ...], divisor: int) -> tuple[float, ...]:
    return tuple(x / divisor for x in (*(-x for x in reversed(positive)), *positive))


_PUBLISHED = CodecSpec(
    stages=1,
    centroids=256,
    bits=2,
    levels=(-1.0, 0.0, 1.0),
    group=64,
    scale_rule="absmax",
    scale_type="e4m3",
    channel_widths=False,
    centroid_type="bfloat16",
)
_TRELLIS = CodecSpec(
    stages=1,
    centroids=256,
    bits=2,
    levels=_symmetric((4, 12, 22, 35), 16),
    group=64,
    scale_rule="searched",
    scale_type="e4m3",
    channel_widths=True,
    centroid_type="e4m3",
    trellis=True,
)

PRESETS: dict[str, CodecSpec] = {
    "qvg": _PUBLISHED,
    "qvg-pro": msgspec.structs.replace(_PUBLISHED, stages=4, group=16),
    "q4": msgspec.structs.replace(
        _TRELLIS,
        bits=4,
        levels=_symmetric(
            (4, 12, 20, 28, 37, 46, 56, 66, 77, 89, 102, 117, 135, 157, 185, 228), 64
        ),
    ),
    "q2": _TRELLIS,
    "q1": msgspec.structs.replace(_TRELLIS, stages=2, bits=1, levels=_symmetric((1, 3), 4)),
}
"""The named formats.

`qvg` and `qvg-pro` are those of Quant VideoGen: with 2 bits they use three levels. The levels of
the others are the best that were found for a trellis and normally distributed numbers, as fractions
of so few bits that a level times a scale is exact in fp32, also times a width.
"""
