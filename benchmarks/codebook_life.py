"""How long a codebook should serve, what it should be fitted to, and what its bits buy.

    python benchmarks/codebook_life.py captures/long.safetensors --output reports

stores the keys and values of a long capture under different lives of codebooks, at the bits that
the engine gives them by default, and writes `codebook_life.md` and `codebook_life.json`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
import typer
from rich.progress import track

from qvg_engine import EngineConfig, VideoRequest, __version__
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import PageFormat, get_format
from qvg_engine.cache import FULL_HISTORY_OVERHEAD, WINDOWED_OVERHEAD
from qvg_engine.loading import load_family
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.capture import load
from qvg_engine.quality.codebook_life import Life
from qvg_engine.quality.figures import decibels
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.life_figures import LifeFigures, measure_life, passes_ms
from qvg_engine.quality.markdown import section
from qvg_engine.quality.sheets import Sheet
from qvg_engine.quality.teacher_forced import TeacherForced

SERVES = (1, 2, 4, 8, 32)
STAGE_BITS = 8
"""Bits of a row that one more stage takes, for its id."""
TIMED_CHUNKS = 24
FULL_HISTORY = CodebookPolicy().for_streams(windowed=False)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a table: a life, and what is changed of the format that is asked for."""

    name: str
    life: Life
    stages: int | None = None
    centroid_type: Literal["float16"] | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures.

    `passes_ms` is the processor time of a chunk's passes with a full window, in a network with
    `num_books` books.
    """

    version: str
    model: str
    prompt: str
    kv_format: str
    num_tokens: int
    layers: tuple[int, ...]
    attending_chunks: tuple[int, ...]
    window_chunks: int
    passes_ms: float | None
    num_books: int
    windowed: tuple[LifeFigures, ...]
    full_history: tuple[LifeFigures, ...]


def fixed_lives(kept: int) -> Iterator[Case]:
    """Codebooks that serve so many chunks, whatever they see."""
    for serves in SERVES:
        chunks = f"{serves} chunk{'s' * (serves > 1)}"
        yield Case(name=f"{chunks}, anew", life=Life(serves=serves, warm=False))
        yield Case(name=f"{chunks}, warm", life=Life(serves=serves))
        yield Case(name=f"{chunks}, warm, to all kept", life=Life(serves=serves, fit_chunks=kept))
        yield Case(
            name=f"{chunks}, to all served",
            life=Life(serves=serves, warm=False, fit_chunks=None),
        )


def windowed_cases(window: int) -> Iterator[Case]:
    """For a stream with a window of so many chunks."""
    engine = Life(fit_chunks=window)
    yield Case(name="policy", life=engine)
    yield from fixed_lives(window)
    for live in (1, 3, 4):
        policy = CodebookPolicy(max_live=live)
        yield Case(name=f"policy, {live} live", life=Life(policy=policy, fit_chunks=window))
    for spans in (2, 4, 8):
        policy = CodebookPolicy(min_spans=spans)
        yield Case(
            name=f"policy, {spans} spans at least", life=Life(policy=policy, fit_chunks=window)
        )
    for residual in (1.0, 1.3):
        policy = CodebookPolicy(refit_residual=residual)
        yield Case(name=f"policy, {residual}", life=Life(policy=policy, fit_chunks=window))
    for fit_chunks in (1, 2, 4, 8):
        yield Case(name=f"policy, to {fit_chunks}", life=Life(fit_chunks=fit_chunks))
    yield Case(name="policy, float16", life=engine, centroid_type="float16")
    yield Case(name="policy, two stages", life=engine, stages=2)


def full_history_cases(chunks: int) -> Iterator[Case]:
    """For a stream that keeps all its chunks."""
    engine = Life(policy=FULL_HISTORY, fit_chunks=chunks)
    yield Case(name="policy", life=engine)
    yield from fixed_lives(chunks)
    yield Case(name="all chunks, to the first", life=Life(serves=chunks))
    yield Case(name="all chunks, to all", life=Life(serves=chunks, fit_chunks=None))
    for spans in (1, 4, 16, 32):
        policy = CodebookPolicy(min_spans=spans)
        yield Case(
            name=f"policy, {spans} spans at least", life=Life(policy=policy, fit_chunks=chunks)
        )
    for live in (1, 3, 4):
        policy = msgspec.structs.replace(FULL_HISTORY, max_live=live)
        yield Case(name=f"policy, {live} live", life=Life(policy=policy, fit_chunks=chunks))
    yield Case(name="policy, to 1", life=Life(policy=FULL_HISTORY))
    yield Case(name="policy, float16", life=engine, centroid_type="float16")
    yield Case(name="policy, two stages", life=engine, stages=2)


def changed(page_format: PageFormat, case: Case) -> PageFormat:
    """The format of a case."""
    codec = page_format.codec
    assert codec is not None
    codec = msgspec.structs.replace(
        codec,
        stages=case.stages or codec.stages,
        centroid_type=case.centroid_type or codec.centroid_type,
    )
    return PageFormat(name=page_format.name, codec=codec)


def sheet(title: str, rows: tuple[LifeFigures, ...], report: Report) -> Sheet:
    """A table of lives."""
    passes = report.passes_ms
    headings = ["codebooks", "live", "centroids", "bits", "+ codebooks", "K, dB", "V, dB"]
    headings += ["attention", "fits a book", "a fit, ms a book"]
    if passes is not None:
        headings += ["fitting all once, of the passes", "storing"]
    lines = []
    for row in rows:
        cells = [row.name, str(row.live), str(row.centroids or "none")]
        if row.centroids:
            cells += [f"{row.bits:.4f}", f"{row.codebook_bits:.3f}"]
            cells += [f"{decibels(x):.2f}" for x in (row.key_error, row.value_error)]
            cells += [f"{row.attention_error:.4f}", f"{row.fits:.1f}", f"{row.fit_ms:.1f}"]
            if passes is not None:
                costs = (row.fit_ms, row.encode_ms)
                cells += [f"{report.num_books * cost / passes:.1%}" for cost in costs]
        lines.append((*cells, *([""] * (len(headings) - len(cells)))))
    return Sheet(title=title, headings=tuple(headings), rows=tuple(lines))


def main(
    path: Annotated[
        Path, typer.Argument(help="A capture of the embedded model, of more than two windows.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    kv_format: Annotated[str, typer.Option(help="A format with centroids.")] = "q2",
    every: Annotated[int, typer.Option(min=1, help="Every so many chunks attend.")] = 8,
    layers: Annotated[list[int] | None, typer.Option(help="Layers; all by default.")] = None,
    timed: Annotated[bool, typer.Option(help="Time a chunk's passes, too.")] = True,
) -> None:
    """Measure and write the report."""
    torch.set_num_threads(1)
    capture = load(path)
    page_format = get_format(kv_format)
    if page_format.codec is None or not page_format.codec.stages:
        raise typer.BadParameter(f"{kv_format} has no codebooks")
    chunks, window = len(capture.chunk_tokens), capture.info.window_tokens
    if window is None or chunks < 2 * window // capture.chunk_tokens[0] + 2:
        raise typer.BadParameter("the capture needs a window, and more than two windows of chunks")
    kept = window // capture.chunk_tokens[0]
    attending = tuple(range(kept, chunks, every))
    head_dim = next(iter(capture.layers.values())).keys.shape[2]
    forced = {
        layer: TeacherForced(capture, layer, attending)
        for layer in (layers or sorted(capture.layers))
    }

    def measured(cases: Iterator[Case], kept: int, overhead: float) -> tuple[LifeFigures, ...]:
        found = []
        for case in track(list(cases), description=f"{kept} chunks kept"):
            assert page_format.codec is not None
            more = (case.stages or page_format.codec.stages) - page_format.codec.stages
            found.append(
                measure_life(
                    case.name,
                    capture,
                    forced,
                    changed(page_format, case),
                    case.life,
                    overhead=overhead - more * STAGE_BITS / head_dim,
                    kept_chunks=kept,
                )
            )
        return tuple(found)

    config = EngineConfig(device="cpu", kv_format=kv_format, max_streams=1)
    family = load_family(config)
    report = Report(
        version=__version__,
        model=capture.info.model,
        prompt=capture.info.prompt,
        kv_format=kv_format,
        num_tokens=capture.num_tokens,
        layers=tuple(forced),
        attending_chunks=attending,
        window_chunks=kept,
        passes_ms=_time_passes(family, config, capture.info.prompt) if timed else None,
        num_books=2 * family.geometry.num_layers,
        windowed=measured(windowed_cases(kept), kept, WINDOWED_OVERHEAD),
        full_history=measured(full_history_cases(chunks), chunks, FULL_HISTORY_OVERHEAD),
    )
    sheets = (
        sheet(f"A window of {kept} chunks", report.windowed, report),
        sheet(f"The full history, {chunks} chunks", report.full_history, report),
    )
    text = "\n\n".join(["# Codebook life", *map(section, sheets)]) + "\n"
    write_whole(output / "codebook_life.json", msgspec.json.format(msgspec.json.encode(report)))
    write_whole(output / "codebook_life.md", text.encode())
    typer.echo(text)


def _time_passes(family: ModelFamily, config: EngineConfig, prompt: str) -> float:
    request = VideoRequest(
        request_id="timed",
        prompt=prompt,
        num_frames=TIMED_CHUNKS * 4 * family.settings.frames_per_chunk,
        output="latents",
    )
    return passes_ms(family, config, request)


if __name__ == "__main__":
    typer.run(main)
