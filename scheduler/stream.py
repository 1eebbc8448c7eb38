"""The scheduler's record of one stream."""

from dataclasses import dataclass

from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import Gang


@dataclass(slots=True, kw_only=True, eq=False)
class Stream:
    """One stream between `add` and `finish`.

    `handicap` is what its priority costs it, in steps (negative for an urgent stream). Its place
    in a line is the step since which it waits plus that handicap: it never changes while it waits,
    and those who come later get later places, so waiting is aging. `number` counts the streams
    ever added, `turn` the services ever given; they settle ties.
    """

    request_id: str
    needs: Needs
    num_branches: int
    number: int
    handicap: int
    added_step: int
    served_step: int = 0
    turn: int = 0
    branch_ids: tuple[int, ...] = ()
    gang: Gang | None = None
    num_gang_tokens: int = 0

    @property
    def admission_place(self) -> tuple[int, int]:
        """Where it stands among waiting streams; the smallest is first."""
        return self.added_step + self.handicap, self.number

    @property
    def service_place(self) -> tuple[int, int]:
        """Where it stands among ready streams; the smallest is first.

        Counts from the step that served it last, or else from the one that admitted it.
        """
        return self.served_step + self.handicap, self.turn

    @property
    def is_running(self) -> bool:
        """Whether it is admitted: it then holds its needs and has branches."""
        return bool(self.branch_ids)
