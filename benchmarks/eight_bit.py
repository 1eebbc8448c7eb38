"""What 8-bit attention costs in quality, beside what the page formats cost.

    python benchmarks/eight_bit.py tests/data/captures/*.safetensors --output reports

prints, and writes to `eight_bit.md` and `eight_bit.json`: on captures, the error that INT8 queries
and keys and E4M3 weights and values add to attention's output over pages of each format; and on
whole videos of the embedded model, PSNR between `attention_backend="eight-bit"` and "workspace",
chunk by chunk through the first window. Needs no GPU.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer

from qvg_engine import EngineConfig, VideoEngine, VideoRequest, __version__
from qvg_engine.kernels.paged_attention import Strategy
from qvg_engine.loading import load_family
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.bench import pick_prompts
from qvg_engine.quality.capture import load
from qvg_engine.quality.chunk_frames import Video, first_chunks, with_room
from qvg_engine.quality.comparison import quality_format, with_centroids
from qvg_engine.quality.figures import EightBitErrors
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.format_errors import LayerErrors
from qvg_engine.quality.markdown import section
from qvg_engine.quality.psnr import psnr
from qvg_engine.quality.sheets import Sheet

FORMATS = ("dense", "bf16", "q4", "qvg-pro", "q2", "q1", "qvg")
FRAMES_PER_CHUNK = 12


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures. PSNR in dB: by video, then by chunk from the second on.

    `of_eight_bit`: of "eight-bit" against "workspace" with the same format; `of_format`: of the
    format against bf16 pages, both with "workspace".
    """

    version: str
    centroids: int
    errors: tuple[EightBitErrors, ...]
    kv_format: str
    prompts: tuple[str, ...]
    of_eight_bit: tuple[tuple[float, ...], ...]
    of_format: tuple[tuple[float, ...], ...]


def measure_errors(paths: list[Path], centroids: int) -> tuple[EightBitErrors, ...]:
    """Every format on every layer of the captures."""
    found = []
    for video, path in enumerate(paths):
        capture = load(path)
        for number in capture.layers:
            layer = LayerErrors(capture, number, video=video)
            found += [
                layer.measure_eight_bit(with_centroids(quality_format(name), centroids))
                for name in FORMATS
            ]
    return tuple(found)


def error_sheet(errors: tuple[EightBitErrors, ...], centroids: int) -> Sheet:
    """The means over layers and captures, by format."""
    rows = []
    for name in FORMATS:
        of_format = [item for item in errors if item.name == name]
        means = [
            float(np.mean([getattr(item, field) for item in of_format]))
            for field in ("format_error", "total_error", "added_error", "added_error_fp16")
        ]
        rows.append((name, *(f"{mean:.4f}" for mean in means)))
    return Sheet(
        title=f"Relative error of attention's output, {centroids} centroids a stage",
        headings=("format", "its own", "with 8-bit attention", "added", "added, V in fp16"),
        rows=tuple(rows),
    )


def make_videos(
    family: ModelFamily,
    prompts: list[str],
    *,
    kv_format: str,
    backend: Strategy,
    chunks: int,
    device: str,
) -> list[Video]:
    """The chunks of every video, but for the first."""
    num_frames = FRAMES_PER_CHUNK * chunks
    config = EngineConfig(
        kv_format=kv_format,
        attention_backend=backend,
        batch_invariant=True,
        device=device,  # type: ignore[arg-type]
    )
    config = with_room(config, family, num_streams=len(prompts), num_frames=num_frames)
    engine = VideoEngine(config, family=family)
    requests = [
        VideoRequest(request_id=str(seed), prompt=prompt, num_frames=num_frames, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]
    return first_chunks(engine, requests, first=1, count=chunks - 1)


def compare(made: list[Video], others: list[Video]) -> tuple[tuple[float, ...], ...]:
    """PSNR of every chunk of every video; 99 where no pixel differs."""
    return tuple(
        tuple(min(psnr(frames, other), 99.0) for frames, other in zip(video, exact, strict=True))
        for video, exact in zip(made, others, strict=True)
    )


def frame_sheet(report: Report) -> Sheet:
    """The means over videos of some chunks."""
    count = len(report.of_format[0])
    shown = [chunk for chunk in (2, 3, 4, 6, 8, 12, 16) if chunk - 2 < count]
    rows = [
        (title, *(f"{np.mean([video[chunk - 2] for video in figures]):.1f}" for chunk in shown))
        for title, figures in (
            (
                f"8-bit attention, against the dense one, both {report.kv_format}",
                report.of_eight_bit,
            ),
            (f"{report.kv_format}, against bf16, both with dense attention", report.of_format),
        )
    ]
    return Sheet(
        title=f"PSNR of frames in dB, {len(report.prompts)} videos",
        headings=("what", *(f"chunk {chunk}" for chunk in shown)),
        rows=tuple(rows),
        note="The first chunk reads no page. Videos that round differently grow apart with time.",
    )


def main(
    captures: Annotated[list[Path], typer.Argument(help="Files of `qvg-engine capture`.")],
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    centroids: Annotated[int, typer.Option(min=1, max=256, help="Of a stage.")] = 64,
    kv_format: Annotated[str, typer.Option(help="Of the videos.")] = "q2",
    num_prompts: Annotated[int, typer.Option(min=1, help="Videos.")] = 2,
    chunks: Annotated[int, typer.Option(min=2, help="Chunks of a video; 16 fill a window.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure and write the report."""
    torch.set_num_threads(1)
    errors = measure_errors(captures, centroids)
    typer.echo(section(error_sheet(errors, centroids)))
    family = load_family(EngineConfig(device=device))  # type: ignore[arg-type]
    prompts = pick_prompts(num_prompts, seed=0)
    ways: tuple[tuple[str, Strategy], ...] = (
        ("bf16", "workspace"),
        (kv_format, "workspace"),
        (kv_format, "eight-bit"),
    )
    exact, plain, narrow = (
        make_videos(family, prompts, kv_format=name, backend=backend, chunks=chunks, device=device)
        for name, backend in ways
    )
    report = Report(
        version=__version__,
        centroids=centroids,
        errors=errors,
        kv_format=kv_format,
        prompts=tuple(prompts),
        of_eight_bit=compare(narrow, plain),
        of_format=compare(plain, exact),
    )
    sheets = (error_sheet(errors, centroids), frame_sheet(report))
    text = "\n\n".join(["# 8-bit attention", *map(section, sheets)]) + "\n"
    write_whole(output / "eight_bit.json", msgspec.json.format(msgspec.json.encode(report)))
    write_whole(output / "eight_bit.md", text.encode())
    typer.echo(section(sheets[1]))


if __name__ == "__main__":
    typer.run(main)
