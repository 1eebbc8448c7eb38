"""How far a long command is: bars for its stages."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_LINE_EVERY_S = 60.0


class Steps:
    """Bars on a terminal; elsewhere a line for each stage as it begins, and one every minute.

    `line` is the word that a stage's first line begins with.
    """

    def __init__(self, console: Console, *, line: str) -> None:
        self._console = console
        self._line = line
        self._tasks: dict[str, TaskID] = {}
        self._line_at = time.monotonic() + _LINE_EVERY_S
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """`done` of `total` parts are done."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
            if not self._console.is_terminal:
                self._print(f"{self._line} {what}: {total} parts")
        elif not self._console.is_terminal and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + _LINE_EVERY_S
            self._print(f"{what}: {done} of {total}")
        self._bars.update(self._tasks[what], completed=done)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
