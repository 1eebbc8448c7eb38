"""What a report is made of: cases that are measured one by one, as long as there is time."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

Row = dict[str, Any]


class NotThere(Exception):
    """What a case measures does not exist here; the message says why."""


class OutOfTime(Exception):
    """A case would take longer than there is time; the message says how long."""


@dataclass(frozen=True)
class Case:
    """One row: what it is, and what adds the figures to it.

    measure: given the seconds that are left; may raise `NotThere` or `OutOfTime`.
    """

    row: Row
    measure: Callable[[float], Row]


@dataclass
class Section:
    """The rows of one section, with an `error` where a case failed, and what is missing."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failures(self) -> list[Row]:
        """The rows of cases that failed, or found a difference that is too large."""
        return [row for row in self.rows if "error" in row]


def run_section(name: str, title: str, cases: Iterator[Case], *, seconds: float) -> Section:
    """Measure the cases in order; once the seconds are used up, the others are left out."""
    section = Section(name=name, title=title)
    start = time.monotonic()
    for case in cases:
        left = seconds - (time.monotonic() - start)
        if left <= 0:
            section.left_out.append(f"{describe(case.row)}: no time left")
            continue
        try:
            section.rows.append(case.row | case.measure(left))
        except (NotThere, OutOfTime) as reason:
            section.left_out.append(f"{describe(case.row)}: {reason}")
        except torch.OutOfMemoryError as error:
            section.left_out.append(f"{describe(case.row)}: {_first_line(error)}")
            torch.cuda.empty_cache()
        except Exception as error:  # One kernel that fails must not cost the other figures.
            traceback.print_exc()
            section.rows.append(
                case.row | {"error": f"{type(error).__name__}: {_first_line(error)}"}
            )
    section.seconds = time.monotonic() - start
    return section


def describe(row: Row) -> str:
    """A row's names in one line."""
    return ", ".join(f"{name} {value}" for name, value in row.items())


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
