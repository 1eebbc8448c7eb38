"""Noise levels of LongCat-Video's denoising steps, the guidance, and the step between levels.

Flow matching with x_t = (1 - sigma) x_0 + sigma * noise. The network predicts x_0 - noise, which
is the negative of what Euler's method integrates.
"""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ScheduleName = Literal["standard", "distilled"]

TIMESTEP_SCALE = 1000
TABLE_STEPS = 50
"""Levels that the distilled schedule picks from; its number of steps is at most this."""
DEFAULT_STEPS: dict[ScheduleName, int] = {"standard": 50, "distilled": 16}

_LAST_SIGMA = 0.001
_TAIL_START = 500.0
_TAIL_STEPS = 10
_NORM_EPSILON = 1e-8


class Schedule(msgspec.Struct, frozen=True):
    """`timesteps` of the denoising steps in (0, 1000], `sigmas` with the final 0 behind."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        """Denoising steps of a segment."""
        return len(self.timesteps)

    def predict_x0(self, noisy: Tensor, flow: Tensor, step: int | None) -> Tensor:
        """The clean latents that a flow points to; `step` None is a commit at level 0."""
        return noisy if step is None else noisy + self.sigmas[step] * flow

    def advance(self, noisy: Tensor, flow: Tensor, step: int) -> Tensor:
        """Euler's step from level `step` to the next."""
        return noisy + (self.sigmas[step] - self.sigmas[step + 1]) * flow


def make_schedule(
    name: ScheduleName, *, num_steps: int, shift: float, enhance_hf: bool
) -> Schedule:
    """The levels of `num_steps` steps, warped by `shift`: s u / (1 + (s - 1) u).

    The standard levels are evenly spaced from 1 to 0.001 before the warp, the distilled ones every
    so many of the table 1, 0.98, ..., 0.02. `enhance_hf` replaces what lies at t <= 500 by ten even
    steps from 500 to 50, so that the number of steps changes.
    """
    levels = _warp(_levels(name, num_steps), shift)
    if enhance_hf:
        tail = np.linspace(_TAIL_START, 0, _TAIL_STEPS, endpoint=False) / TIMESTEP_SCALE
        early = levels[levels * TIMESTEP_SCALE > _TAIL_START]
        levels = np.concatenate([early, tail.astype(np.float32)])
    timesteps = levels * np.float32(TIMESTEP_SCALE)
    return Schedule(tuple(float(t) for t in timesteps), (*(float(sigma) for sigma in levels), 0.0))


def _levels(name: ScheduleName, num_steps: int) -> NDArray[np.float32]:
    if name == "standard":
        return np.linspace(1.0, _LAST_SIGMA, num_steps, dtype=np.float32)
    assert 1 <= num_steps <= TABLE_STEPS, num_steps
    table = np.arange(TABLE_STEPS, 0, -1, dtype=np.float32) / np.float32(TABLE_STEPS)
    return table[np.arange(num_steps) * TABLE_STEPS // num_steps]


def _warp(levels: NDArray[np.float32], shift: float) -> NDArray[np.float32]:
    return np.float32(shift) * levels / (1 + np.float32(shift - 1) * levels)


def cfg_zero_scale(prompted: Tensor, negative: Tensor) -> Tensor:
    """<prompted, negative> / |negative|^2 as a tensor of one value (CFG-Zero*, arXiv 2503.18886).

    The scale that brings the negative flow closest to the prompted one; no value leaves the device.
    """
    c, u = prompted.float().flatten(), negative.float().flatten()
    return (c @ u) / (u @ u + _NORM_EPSILON)


def guide(prompted: Tensor, negative: Tensor, *, guidance: float, scale: Tensor) -> Tensor:
    """The scaled negative flow, and `guidance` times the way from it to the prompted one."""
    start = negative * scale
    return start + guidance * (prompted - start)
