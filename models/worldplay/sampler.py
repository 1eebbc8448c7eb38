"""Euler steps on the velocity, without noise in between."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from qvg_engine.errors import ConfigError

MAX_TIMESTEP = 1000


class EulerSampler:
    """Noise levels sigma = t / 1000 of the denoising passes; the last step goes to 0.

    With `warp_timesteps` a timestep t stands for the level s u / (1 + (s - 1) u), u = t / 1000 and
    s the shift. Levels are in fp32, as the originals have them.
    """

    def __init__(
        self,
        timesteps: Sequence[float],
        *,
        shift: float,
        warp_timesteps: bool,
        commit_timestep: float,
    ) -> None:
        """Raises `ConfigError` for timesteps that do not fall within (0, 1000] or a bad shift."""
        falling = all(later < earlier for earlier, later in itertools.pairwise(timesteps))
        if not timesteps or not falling or timesteps[0] > MAX_TIMESTEP or timesteps[-1] <= 0:
            raise ConfigError(
                f"timesteps is {list(timesteps)}: give falling numbers in (0, {MAX_TIMESTEP}]"
            )
        if not 0 < shift < float("inf"):
            raise ConfigError(f"shift is {shift}: give a positive number")
        if not 0 <= commit_timestep < MAX_TIMESTEP:
            raise ConfigError(
                f"commit_timestep is {commit_timestep}: give a number in [0, {MAX_TIMESTEP})"
            )
        given = torch.tensor(timesteps, dtype=torch.float32)
        levels = given / MAX_TIMESTEP
        if warp_timesteps:
            levels = shift * levels / (1 + (shift - 1) * levels)
            given = levels * MAX_TIMESTEP
        self.timesteps: tuple[float, ...] = tuple(given.tolist())
        self.sigmas: tuple[float, ...] = (*levels.tolist(), 0.0)
        self.commit_timestep = float(commit_timestep)

    @property
    def num_steps(self) -> int:
        """Denoising passes a chunk."""
        return len(self.timesteps)

    def predict_x0(self, noisy: Tensor, flow: Tensor, timestep: float) -> Tensor:
        """The clean latents that a flow at a timestep points to, fp32."""
        return noisy.float() - timestep / MAX_TIMESTEP * flow.float()

    def advance(self, noisy: Tensor, flow: Tensor, step: int) -> Tensor:
        """What comes after denoising step `step`, fp32."""
        return noisy.float() + (self.sigmas[step + 1] - self.sigmas[step]) * flow.float()
