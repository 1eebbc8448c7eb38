"""Figures about the scheduler's work, for displays and reports."""

from dataclasses import dataclass

import msgspec

from qvg_engine.scheduler.plan import StepPlan


class SchedulerStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot.

    `num_pages_used` and `num_pages_free` count the pool's pages, `num_pages_reserved` the peaks of
    all running streams. `num_steps` counts completed steps that ran a pass; the means and
    `num_passes_last_step` are about those, and 0 before the first.
    """

    num_waiting: int
    num_running: int
    num_pages_used: int
    num_pages_free: int
    num_pages_reserved: int
    num_steps: int
    num_passes_last_step: int
    mean_streams_per_step: float
    mean_passes_per_step: float
    mean_tokens_per_step: float


@dataclass(slots=True)
class StepTotals:
    """Sums over the completed steps that ran a pass."""

    num_steps: int = 0
    num_streams: int = 0
    num_passes: int = 0
    num_tokens: int = 0
    num_passes_last_step: int = 0

    def count(self, plan: StepPlan, *, num_streams: int) -> None:
        """Add a completed step that served `num_streams` streams."""
        if not plan.units:
            return
        self.num_steps += 1
        self.num_streams += num_streams
        self.num_passes += len(plan.units)
        self.num_tokens += plan.num_tokens
        self.num_passes_last_step = len(plan.units)

    def mean(self, total: int) -> float:
        """`total` per step."""
        return total / self.num_steps if self.num_steps else 0.0
