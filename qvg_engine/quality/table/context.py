"""What all stages of a table's measurement share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from qvg_engine.config import EngineConfig
from qvg_engine.errors import QvgError
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.table.captures import Captures
from qvg_engine.quality.table.part_names import PartNames
from qvg_engine.quality.table.parts import Part, Parts

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many parts of it are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class TableContext:
    """The parts of a table, where they are kept, and what measures them.

    failures: the parts that could not be measured, by name, and why.
    """

    names: PartNames
    parts: Parts
    family: ModelFamily
    config: EngineConfig
    captures: Captures
    on_progress: Progress
    failures: dict[str, str] = field(default_factory=dict)

    def capture(self, video: int) -> Capture:
        """The capture of one video, made if it is missing."""
        return self.captures.get(video, self.names.capture(video), self.names.source(video))

    def measure(
        self, part: Part, kind: type[msgspec.Struct], call: Callable[[], msgspec.Struct]
    ) -> None:
        """Keep what `call` returns as a part, unless it is there; a `QvgError` is noted down."""
        if self.parts.read(part, kind) is not None:
            return
        try:
            figures = call()
        except QvgError as error:
            self.note(part.name, error)
        else:
            self.parts.write(part, figures)

    def note(self, name: str, error: QvgError) -> None:
        """Note down why something could not be measured."""
        self.failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
