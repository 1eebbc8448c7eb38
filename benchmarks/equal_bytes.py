"""Whether compression buys memory: a longer window in `q2` against a shorter one in `bf16`.

    python benchmarks/equal_bytes.py --output reports/equal_bytes

makes the same videos with both formats and both windows of three budgets of bytes, follows the
camera through each, and compares how well ground comes back that was seen a lap before. It writes
`equal_bytes.md`, `equal_bytes.json` and a plot into the folder. Every batch of videos that is
finished is kept in `parts/` there and is not made again, unless something that it depends on has
changed: the model's weights, the format, the prompts. Where only code has changed, `--again FORMAT`
forgets the videos of a format.
"""

import shutil
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from qvg_engine import EngineConfig
from qvg_engine.cli.console import make_console
from qvg_engine.cli.numbers import parse_numbers
from qvg_engine.cli.steps import Steps
from qvg_engine.cli.video_family import load_video_family
from qvg_engine.errors import ConfigError, QvgError
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.loading import EMBEDDED_MODEL
from qvg_engine.quality.checksum import model_checksum
from qvg_engine.quality.equal_bytes.budgets import find_budgets
from qvg_engine.quality.equal_bytes.report import REPORT_NAME, write_report
from qvg_engine.quality.equal_bytes.settings import EXACT, EqualBytesSettings
from qvg_engine.quality.equal_bytes.videos import Study
from qvg_engine.quality.memory import shape_of
from qvg_engine.quality.table.parts import Parts

_DEFAULTS = EqualBytesSettings()


def main(
    output: Annotated[Path, typer.Option(help="Folder for the report and its parts.")] = Path(
        "reports/equal_bytes"
    ),
    kv_format: Annotated[str, typer.Option(help="What is compared with bf16.")] = (
        _DEFAULTS.kv_format
    ),
    windows: Annotated[str, typer.Option(help="Of bf16, in latent frames.")] = (
        ",".join(map(str, _DEFAULTS.windows))
    ),
    prompts: Annotated[int, typer.Option(help="Videos of each format and window.")] = (
        _DEFAULTS.num_prompts
    ),
    seeds: Annotated[int, typer.Option(help="Seeds of each prompt.")] = _DEFAULTS.num_seeds,
    together: Annotated[int, typer.Option(help="Prompts at the same time.")] = _DEFAULTS.together,
    num_frames: Annotated[int, typer.Option(help="Frames of a video.")] = _DEFAULTS.num_frames,
    judge_every: Annotated[int, typer.Option(help="Judge every so many frames.")] = (
        _DEFAULTS.judge_every
    ),
    float32: Annotated[bool, typer.Option(help="Compute in fp32 instead of bf16.")] = False,
    again: Annotated[
        list[str] | None, typer.Option(help="Forget the videos of this format first.")
    ] = None,
    model: Annotated[str, typer.Option(help="pocket, or a folder of that kind.")] = EMBEDDED_MODEL,
    seed: Annotated[int, typer.Option(help="Of prompts and videos.")] = 0,
) -> None:
    """Make what is missing, and write the report of what there is."""
    dtype: Literal["float32", "bfloat16"] = "float32" if float32 else "bfloat16"
    try:
        settings = EqualBytesSettings(
            model=model,
            kv_format=kv_format,
            windows=parse_numbers(windows, name="--windows"),
            num_prompts=prompts,
            num_seeds=seeds,
            together=together,
            num_frames=num_frames,
            judge_every=judge_every,
            dtype=dtype,
            seed=seed,
        )
        measure(settings, output, again=again or [])
    except QvgError as error:
        raise typer.BadParameter(str(error)) from error


def measure(settings: EqualBytesSettings, output: Path, *, again: list[str]) -> None:
    """Make the videos, and write the report whether they came to their end or not."""
    torch.set_num_threads(1)
    keep_freed_memory()
    family = load_video_family(EngineConfig(model=settings.model, device="cpu"))
    parts = Parts(output / "parts")
    study = Study(
        settings,
        find_budgets(settings, shape_of(family)),
        parts,
        weights=model_checksum(settings.model),
    )
    for name in again:
        if name not in (EXACT, settings.kv_format):
            raise ConfigError(f"--again is {name!r}: give {EXACT} or {settings.kv_format}")
        shutil.rmtree(parts.folder / name, ignore_errors=True)
    console = make_console()
    try:
        with Steps(console, line="making") as steps:
            study.measure(steps.show)
    finally:
        write_report(study, output)
        console.print(f"wrote {output / REPORT_NAME}.md", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
