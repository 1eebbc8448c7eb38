"""Measuring the parts of a table that are missing, stage by stage."""

from collections.abc import Callable, Sequence

from qvg_engine.config import EngineConfig
from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.table.adherence import judge_adherence
from qvg_engine.quality.table.captures import Captures
from qvg_engine.quality.table.context import Progress, TableContext
from qvg_engine.quality.table.error_stage import measure_all_times, measure_errors
from qvg_engine.quality.table.frame_stage import measure_clips, measure_windows
from qvg_engine.quality.table.part_names import PartNames
from qvg_engine.quality.table.parts import Parts

STAGES: dict[str, Callable[[TableContext], None]] = {
    "errors": measure_errors,
    "times": measure_all_times,
    "frames": measure_windows,
    "clips": measure_clips,
    "adherence": judge_adherence,
}
"""What a table measures, in order."""


def check_stages(stages: Sequence[str]) -> None:
    """`ConfigError` for a stage that there is not."""
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"unknown stage {stage!r}: use one of {', '.join(STAGES)}")


def run_table(
    names: PartNames,
    parts: Parts,
    family: ModelFamily,
    config: EngineConfig,
    *,
    stages: Sequence[str] = tuple(STAGES),
    on_progress: Progress = lambda what, done, total: None,
) -> dict[str, str]:
    """Measure what is missing; returns the parts that could not be measured, and why.

    Args:
        names: the parts of the table.
        parts: where they are kept.
        family: with prompt encoder and VAE.
        config: the engine's settings; formats, memory and number of streams are set here.
        stages: which, of `STAGES`.
        on_progress: called after every part.

    Raises `ConfigError` for a stage that there is not, or settings that the model cannot follow.
    """
    check_stages(stages)
    captures = Captures(
        parts,
        family,
        config,
        on_chunk=lambda video, done, total: on_progress(f"capture {video}", done, total),
    )
    context = TableContext(names, parts, family, config, captures, on_progress)
    for stage in stages:
        STAGES[stage](context)
    return context.failures
