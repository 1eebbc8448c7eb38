"""Noise that depends on a key, not on what was drawn before.

A counter-based generator (Philox) on the host is keyed by (seed, chunk, denoising step), so that
a stream's noise is the same on every device, in every batch, and after a pause.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, int, int, int]
_MASK_64 = 2**64 - 1


class NoiseSource(Protocol):
    """Where a stream's noise comes from; shapes are [frames, C, h, w], fp32 on the host."""

    def start(self, chunk: int, shape: Shape) -> Tensor:
        """What the first denoising pass of a chunk starts from."""
        ...

    def renoise(self, chunk: int, step: int, shape: Shape) -> Tensor:
        """What is mixed into the x0 of denoising step `step` for the step after it."""
        ...


class KeyedNoise:
    """Standard normal noise from a seed."""

    def __init__(self, seed: int) -> None:
        self._key = np.array([seed & _MASK_64, (seed >> 64) & _MASK_64], dtype=np.uint64)

    def start(self, chunk: int, shape: Shape) -> Tensor:
        return self._draw(chunk, 0, shape)

    def renoise(self, chunk: int, step: int, shape: Shape) -> Tensor:
        return self._draw(chunk, step + 1, shape)

    def _draw(self, chunk: int, draw: int, shape: Shape) -> Tensor:
        # The low word counts the values of one draw; the others say which draw it is.
        counter = np.array([0, draw, chunk, 0], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


class GivenNoise:
    """Noise that came with the request, for comparison with other implementations.

    `noise` is [F, C, h, w]; `renoise` [chunks, steps - 1, frames per chunk, C, h, w], or None:
    then `keyed` draws it.
    """

    def __init__(
        self, noise: Tensor, renoise: Tensor | None, *, frames_per_chunk: int, keyed: KeyedNoise
    ) -> None:
        self._noise: tuple[Tensor, ...] = noise.float().cpu().split(frames_per_chunk)
        self._renoise = None if renoise is None else renoise.float().cpu()
        self._keyed = keyed

    @property
    def has_renoise(self) -> bool:
        """Whether the noise between denoising steps was given, too."""
        return self._renoise is not None

    def start(self, chunk: int, shape: Shape) -> Tensor:
        noise = self._noise[chunk]
        assert noise.shape == shape, (noise.shape, shape)
        return noise

    def renoise(self, chunk: int, step: int, shape: Shape) -> Tensor:
        if self._renoise is None:
            return self._keyed.renoise(chunk, step, shape)
        return self._renoise[chunk, step, : shape[0]]
