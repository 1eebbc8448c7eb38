"""The few-step flow-matching sampler of Self-Forcing, CausVid and LongLive.

x_t = (1 - sigma) x_0 + sigma * noise, and the network predicts noise - x_0. Noise levels are the
entries of a table of 1,000 steps, warped by a shift; a timestep stands for the nearest entry, the
commit pass's t = 0 included (with shift 5 its level is 0.005, not 0).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from qvg_engine.errors import ConfigError

TABLE_STEPS = 1000


class FewStepSampler:
    """Noise levels of the denoising passes and the two updates between them."""

    def __init__(
        self,
        timesteps: Sequence[float],
        *,
        shift: float,
        warp_timesteps: bool,
        commit_timestep: float = 0.0,
    ) -> None:
        """Timesteps are in (0, 1000], falling; with `warp_timesteps` they index the table.

        Raises `ConfigError` for timesteps that do not fall or a shift that is not positive.
        """
        _check(timesteps, shift, commit_timestep)
        steps = torch.linspace(1.0, 0.0, TABLE_STEPS + 1)[:-1]
        self._sigmas = shift * steps / (1 + (shift - 1) * steps)
        self._timesteps = self._sigmas * TABLE_STEPS
        if warp_timesteps:
            indices = [TABLE_STEPS - round(t) for t in timesteps]
            self.timesteps = tuple(float(self._timesteps[index]) for index in indices)
        else:
            self.timesteps = tuple(float(t) for t in timesteps)
        self.sigmas = tuple(self.sigma(t) for t in self.timesteps)
        self.commit_timestep = float(commit_timestep)
        self.commit_sigma = self.sigma(self.commit_timestep)

    @property
    def num_steps(self) -> int:
        """Denoising passes a chunk."""
        return len(self.timesteps)

    def sigma(self, timestep: float) -> float:
        """The noise level of the table's entry nearest to a timestep."""
        return float(self._sigmas[(self._timesteps - timestep).abs().argmin()])

    def predict_x0(self, noisy: Tensor, flow: Tensor, step: int | None) -> Tensor:
        """The clean latents that the flow at a denoising step (None: the commit) points to."""
        sigma = self.commit_sigma if step is None else self.sigmas[step]
        return (noisy.double() - sigma * flow.double()).to(noisy.dtype)

    def renoise(self, x0: Tensor, noise: Tensor, step: int) -> Tensor:
        """What denoising step `step` starts from, given the x0 of the step before it."""
        sigma = self.sigmas[step]
        return (1 - sigma) * x0 + sigma * noise


def _check(timesteps: Sequence[float], shift: float, commit_timestep: float) -> None:
    if not timesteps:
        raise ConfigError("timesteps is empty: give at least one timestep in (0, 1000]")
    falling = all(later < earlier for earlier, later in itertools.pairwise(timesteps))
    if not falling or timesteps[0] > TABLE_STEPS or timesteps[-1] <= 0:
        raise ConfigError(
            f"timesteps is {list(timesteps)}: give falling numbers in (0, {TABLE_STEPS}]"
        )
    if not 0 < shift < float("inf"):
        raise ConfigError(f"shift is {shift}: give a positive number")
    if not 0 <= commit_timestep < TABLE_STEPS:
        raise ConfigError(
            f"commit_timestep is {commit_timestep}: give a number in [0, {TABLE_STEPS})"
        )
