"""What both training scripts share: a budget of minutes or steps, and checkpoints on disk."""

import math
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from qvg_engine.errors import ConfigError


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How long a training lasts: wall-clock minutes, or optimiser steps (reproducible)."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.minutes, self.steps) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ConfigError(
                f"minutes is {self.minutes} and steps is {self.steps}: give one positive number"
            )

    def progress(self, step: int, elapsed_s: float) -> float:
        """The part of the budget that is used up, 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, elapsed_s / (60 * self.minutes))


class Clock:
    """Seconds of training, over all runs of one training."""

    def __init__(self, before_s: float = 0.0) -> None:
        self._start = time.perf_counter() - before_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the training began, time between its runs left out."""
        return time.perf_counter() - self._start


def learning_rate(peak: float, step: int, progress: float, *, warmup_steps: int = 100) -> float:
    """Linear warm-up over steps, then a half cosine over the budget down to 2 % of the peak."""
    warmup = min(1.0, (step + 1) / warmup_steps)
    return peak * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def trapezoid_rate(
    peak: float, step: int, progress: float, *, warmup_steps: int = 100, decay_from: float = 0.6
) -> float:
    """Linear warm-up over steps, the peak, then a straight fall over the budget's last part."""
    warmup = min(1.0, (step + 1) / warmup_steps)
    return peak * warmup * min(1.0, max(0.01, (1 - progress) / (1 - decay_from)))


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, or None where there is nothing to resume."""
    if not path.exists():
        return None
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
