"""What one step runs: the answer of the scheduler, which nobody changes."""

import msgspec

from qvg_engine.block_manager.manager import PendingCommit
from qvg_engine.scheduler.unit import PassUnit


class ScheduledPass(msgspec.Struct, frozen=True, kw_only=True):
    """A pass that runs in this step.

    `branch_id` is the block manager's id of `unit.branch`. `commit` holds the pages that a commit
    pass writes; a denoising pass has none.
    """

    request_id: str
    branch_id: int
    unit: PassUnit
    commit: PendingCommit | None = None


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One step: the streams that it admitted and the passes that it runs.

    Steps count from 0. The passes of a gang are neighbours in `units`, in the order of the offer;
    the gangs stand in the order in which they were picked. A plan without units is a step in which
    no stream was ready.
    """

    step_index: int
    admitted: tuple[str, ...]
    units: tuple[ScheduledPass, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all passes."""
        return sum(scheduled.unit.num_tokens for scheduled in self.units)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The streams that run, each once, in the order in which they were picked."""
        return tuple(dict.fromkeys(scheduled.request_id for scheduled in self.units))
