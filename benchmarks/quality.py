"""The quality of all contenders: bits, errors, times, frames and prompt adherence, in one table.

    python benchmarks/quality.py --output reports/quality

writes `quality.md`, `quality.json` and plots into the folder. Every part that is finished is kept
in `parts/` there and is not done again: a run that was stopped, or that is asked for more, goes on
where it was. A part is done again when what it is of has changed (the model's weights, a
contender's settings, the videos); where only code has changed, `--again NAME` forgets the parts of
a contender.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from qvg_engine import EngineConfig
from qvg_engine.cli.console import make_console
from qvg_engine.cli.numbers import parse_numbers
from qvg_engine.cli.steps import Steps
from qvg_engine.cli.video_family import load_video_family
from qvg_engine.errors import QvgError
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.quality.checksum import model_checksum
from qvg_engine.quality.table.part_names import PartNames
from qvg_engine.quality.table.parts import Parts
from qvg_engine.quality.table.report import write_report
from qvg_engine.quality.table.run import STAGES, check_stages, run_table
from qvg_engine.quality.table.settings import TableSettings

_DEFAULTS = TableSettings()


def main(
    output: Annotated[Path, typer.Option(help="Folder for the report and its parts.")] = Path(
        "reports/quality"
    ),
    stages: Annotated[str, typer.Option(help="What to measure; none for the report alone.")] = (
        ",".join(STAGES)
    ),
    contenders: Annotated[
        str | None, typer.Option(help="Names in the registry; all by default.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="What the others are compared with.")] = (
        _DEFAULTS.baseline
    ),
    centroids: Annotated[str, typer.Option(help="Of a stage; a table for each number.")] = (
        ",".join(map(str, _DEFAULTS.centroids))
    ),
    captures: Annotated[int, typer.Option(help="Captured videos.")] = _DEFAULTS.num_captures,
    capture_frames: Annotated[int, typer.Option(help="Frames of each.")] = (
        _DEFAULTS.capture_frames
    ),
    layers: Annotated[str | None, typer.Option(help="Layers to capture, such as 0,3.")] = None,
    attend_every: Annotated[int, typer.Option(help="Attend with every so many-th chunk.")] = (
        _DEFAULTS.attend_every
    ),
    windows: Annotated[
        str | None, typer.Option(help="Contenders whose first windows are compared; all.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of the first windows.")] = (
        _DEFAULTS.num_prompts
    ),
    seeds: Annotated[int, typer.Option(help="Seeds of each prompt.")] = _DEFAULTS.num_seeds,
    clips: Annotated[str, typer.Option(help="Contenders whose whole clips are compared.")] = (
        ",".join(_DEFAULTS.clips)
    ),
    num_clips: Annotated[int, typer.Option(help="Whole clips of each.")] = _DEFAULTS.num_clips,
    clip_frames: Annotated[int, typer.Option(help="Frames of each.")] = _DEFAULTS.clip_frames,
    adherence: Annotated[str, typer.Option(help="Contenders that are judged.")] = (
        ",".join(_DEFAULTS.adherence)
    ),
    adherence_prompts: Annotated[int, typer.Option(help="Judged videos of each.")] = (
        _DEFAULTS.adherence_prompts
    ),
    adherence_frames: Annotated[int, typer.Option(help="Frames of each.")] = (
        _DEFAULTS.adherence_frames
    ),
    shown: Annotated[str, typer.Option(help="Contenders that pictures of a few show.")] = (
        ",".join(_DEFAULTS.shown)
    ),
    again: Annotated[
        list[str] | None, typer.Option(help="Forget the parts of this contender first.")
    ] = None,
    model: Annotated[str, typer.Option(help="pocket, or a folder of that kind.")] = "pocket",
    seed: Annotated[int, typer.Option(help="Of prompts, videos and k-means.")] = 0,
) -> None:
    """Measure what is missing, and write the report of what there is."""
    try:
        settings = TableSettings(
            model=model,
            contenders=_DEFAULTS.contenders if contenders is None else _names(contenders),
            baseline=baseline,
            centroids=parse_numbers(centroids, name="--centroids"),
            num_captures=captures,
            capture_frames=capture_frames,
            layers=None if layers is None else parse_numbers(layers, name="--layers"),
            attend_every=attend_every,
            windows=None if windows is None else _names(windows),
            num_prompts=prompts,
            num_seeds=seeds,
            clips=_names(clips),
            num_clips=num_clips,
            clip_frames=clip_frames,
            adherence=_names(adherence),
            adherence_prompts=adherence_prompts,
            adherence_frames=adherence_frames,
            shown=_names(shown),
            seed=seed,
        )
        wanted = () if stages == "none" else _names(stages)
        check_stages(wanted)
        measure(settings, output, stages=wanted, again=again or [])
    except QvgError as error:
        raise typer.BadParameter(str(error)) from error


def measure(
    settings: TableSettings, output: Path, *, stages: tuple[str, ...], again: list[str]
) -> None:
    """Run the stages, and write the report whether they came to their end or not."""
    keep_freed_memory()
    config = EngineConfig(model=settings.model)
    family = load_video_family(config)
    layers = settings.layers or tuple(range(family.geometry.num_layers))
    names = PartNames(settings, weights=model_checksum(settings.model), layers=layers)
    parts = Parts(output / "parts")
    for name in again:
        for stage in STAGES:
            shutil.rmtree(parts.folder / stage / name, ignore_errors=True)
            for path in parts.folder.glob(f"{stage}/{name}.*"):
                path.unlink()
    console = make_console()
    failures: dict[str, str] = {}
    try:
        with Steps(console, line="measuring") as steps:
            failures = run_table(
                names, parts, family, config, stages=stages, on_progress=steps.show
            )
    finally:
        write_report(names, parts, family, output, failures=failures)
        console.print(f"wrote {output / 'quality.md'}", highlight=False, soft_wrap=True)
    for name, why in failures.items():
        console.print(f"could not measure {name}: {why}", markup=False, highlight=False)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


if __name__ == "__main__":
    typer.run(main)
