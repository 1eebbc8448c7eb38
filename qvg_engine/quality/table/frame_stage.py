"""Frames of contenders against those of bf16 pages: first windows, and whole clips."""

from functools import partial

from qvg_engine.admission import chunked_latent_frames
from qvg_engine.block_manager.format import FORMATS
from qvg_engine.errors import ConfigError, QvgError
from qvg_engine.quality.chunk_frames import Video
from qvg_engine.quality.contenders.registry import contender
from qvg_engine.quality.table.context import TableContext
from qvg_engine.quality.table.frame_figures import RunFigures, compare_runs
from qvg_engine.quality.table.kept_frames import kept_frames
from qvg_engine.quality.table.part_names import DENSE_CONTROL, EXACT
from qvg_engine.quality.table.runs import ContenderRuns
from qvg_engine.quality.table.settings import NUM_WINDOW_CHUNKS

_ALL_CHUNKS = 2**31


def measure_windows(context: TableContext) -> None:
    """The first window of every contender that can be run, with every seed."""
    names = context.names
    settings = names.settings
    _check_length(context)
    runs = ContenderRuns(context.family, context.config, num_frames=settings.stream_frames)
    runnable = [name for name in names.compared if _can_run(context, runs, name)]
    wanted = [(name, index) for index in range(settings.num_seeds) for name in runnable]
    context.on_progress("first windows", 0, len(wanted))
    for done, (name, index) in enumerate(wanted, start=1):
        part = names.window(name, index)
        context.measure(part, RunFigures, partial(_window, context, runs, name, index))
        context.on_progress("first windows", done, len(wanted))


def _check_length(context: TableContext) -> None:
    num_frames = context.names.settings.stream_frames
    latent = chunked_latent_frames(context.family, num_frames, request_id="table")
    if latent // context.family.settings.frames_per_chunk <= NUM_WINDOW_CHUNKS:
        raise ConfigError(
            f"stream_frames is {num_frames}: give at least {NUM_WINDOW_CHUNKS + 1} chunks, since "
            f"the first reads no cache and the next {NUM_WINDOW_CHUNKS} are compared"
        )


def _can_run(context: TableContext, runs: ContenderRuns, name: str) -> bool:
    """Whether an engine can store what a contender reads back; a failure is noted down."""
    try:
        return bool(runs.how(contender(name)))
    except QvgError as error:
        context.note(f"frames/{name}", error)
        return False


def _window(context: TableContext, runs: ContenderRuns, name: str, index: int) -> RunFigures:
    names = context.names
    prompts, seeds = names.prompts(names.settings.num_prompts), names.window_seeds(index)

    def make(name: str) -> list[Video]:
        return runs.contender(contender(name), prompts, seeds, first=1, count=NUM_WINDOW_CHUNKS)

    exact = kept_frames(context.parts, names.window(EXACT, index), partial(make, EXACT))
    return compare_runs(make(name), exact)


def measure_clips(context: TableContext) -> None:
    """The whole clips of the contenders that were asked for, and of the controls."""
    names = context.names
    runs = ContenderRuns(context.family, context.config, num_frames=names.settings.clip_frames)
    chosen = [name for name in names.clips if name not in names.controls]
    wanted = [*names.controls, *(name for name in chosen if _can_run(context, runs, name))]
    context.on_progress("whole clips", 0, len(wanted))
    for done, name in enumerate(wanted, start=1):
        context.measure(names.clip(name), RunFigures, partial(_clip, context, runs, name))
        context.on_progress("whole clips", done, len(wanted))


def _clip(context: TableContext, runs: ContenderRuns, name: str) -> RunFigures:
    names = context.names
    prompts, seeds = names.prompts(names.settings.num_clips), names.clip_seeds()

    def make(name: str) -> list[Video]:
        if name not in names.controls:
            return runs.contender(contender(name), prompts, seeds, first=0, count=_ALL_CHUNKS)
        is_dense = name == DENSE_CONTROL
        return runs.page_format(
            FORMATS["dense" if is_dense else EXACT],
            prompts,
            seeds,
            first=0,
            count=_ALL_CHUNKS,
            batch_invariant=is_dense,
        )

    exact = kept_frames(context.parts, names.clip(EXACT), partial(make, EXACT))
    return compare_runs(make(name), exact)
