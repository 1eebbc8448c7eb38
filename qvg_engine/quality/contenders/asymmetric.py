"""Grids that begin anywhere: a scale and a zero point for every group."""

from typing import Literal

import msgspec
import torch
from torch import Tensor

from qvg_engine.checks import check_choice, check_range
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec.e4m3 import from_e4m3, to_e4m3

_NUMBER_BITS = {"float16": 16, "e4m3": 8}


class AsymmetricGrid(msgspec.Struct, frozen=True, kw_only=True):
    """Even steps from a group's least to its largest element; 2**bits levels, all of them used.

    An element reads back as code * scale + zero. The zero point is the least element as it is
    stored, the scale is then the rest of the range over the number of steps; so both are rounded
    before codes are chosen.

    * `bits`: of a code, 1 to 8.
    * `number_type`: of scale and zero point, "float16" or "e4m3", both saturating.
    * `ranges`: parts of the range, about its middle, that are tried; the one with the least squared
      error is kept, the first of equals. (1.0,) is plain min-max rounding.

    Raises `ConfigError` naming field, value and range.
    """

    bits: int
    number_type: Literal["float16", "e4m3"] = "float16"
    ranges: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check_range("bits", self.bits, 1, 8)
        check_choice("number_type", self.number_type, tuple(_NUMBER_BITS))
        if not self.ranges or not all(0 < part <= 1 for part in self.ranges):
            raise ConfigError(f"ranges is {self.ranges!r}: give numbers above 0, up to 1")

    @property
    def group_bits(self) -> int:
        """Bits of the scale and the zero point of one group."""
        return 2 * _NUMBER_BITS[self.number_type]

    def read_back(self, groups: Tensor) -> Tensor:
        """Groups fp32 [..., elements] as they are read, a new tensor."""
        low, high = groups.aminmax(dim=-1, keepdim=True)
        best = self._between(groups, low, high, self.ranges[0])
        error = _error(best, groups)
        for part in self.ranges[1:]:
            trial = self._between(groups, low, high, part)
            trial_error = _error(trial, groups)
            better = trial_error < error
            best = torch.where(better, trial, best)
            error = torch.where(better, trial_error, error)
        return best

    def _between(self, groups: Tensor, low: Tensor, high: Tensor, part: float) -> Tensor:
        steps = 2**self.bits - 1
        cut = (high - low) * ((1 - part) / 2)
        zero = self._stored(low + cut)
        scale = self._stored(((high - cut - zero) / steps).clamp(min=0))
        # Where the scale is 0, all of the group reads back as the zero point.
        codes = ((groups - zero) / torch.where(scale > 0, scale, 1.0)).round().clamp(0, steps)
        return codes * scale + zero

    def _stored(self, numbers: Tensor) -> Tensor:
        if self.number_type == "e4m3":
            return from_e4m3(to_e4m3(numbers))
        largest = torch.finfo(torch.float16).max
        return numbers.clamp(-largest, largest).half().float()


def _error(read: Tensor, groups: Tensor) -> Tensor:
    return (read - groups).square().sum(dim=-1, keepdim=True)
