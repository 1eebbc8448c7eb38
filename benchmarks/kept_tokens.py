"""What it is worth to keep the newest tokens, or the first, at a higher precision.

    python benchmarks/kept_tokens.py captures/long.safetensors --output reports

compares that, bit for bit, with more centroids and with a second stage for the whole window, and
writes `kept_tokens.md` and `kept_tokens.json`.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer
from torch import Tensor

from qvg_engine import __version__
from qvg_engine.block_manager.format import PageFormat, get_format
from qvg_engine.cache import WINDOWED_OVERHEAD
from qvg_engine.quality.capture import Capture, load
from qvg_engine.quality.codebook_life import Life, codebook_bits, codebook_centroids, replay
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.kept_tokens import Kept, attention_error, extra_bits
from qvg_engine.quality.markdown import section
from qvg_engine.quality.sheets import Sheet
from qvg_engine.quality.teacher_forced import TeacherForced

Rows = dict[int, tuple[Tensor, Tensor]]

NEWEST_FRAMES = (1, 2, 3, 6)
"""Latent frames that are kept apart, of chunks of three."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A way to spend bits: all bits of an element of the window, and attention's relative error.

    `layer_errors` are those of each layer, `error` is their mean; `centroids` those of a stage.
    """

    name: str
    centroids: int
    total_bits: float
    error: float
    layer_errors: tuple[float, ...]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """Rows as they are read back, and what they take."""

    rows: Rows
    bits: float
    codebook_bits: float
    centroids: int

    @property
    def total_bits(self) -> float:
        """All bits of an element."""
        return self.bits + self.codebook_bits


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures: of chunks with a full window, and of those that still read the first chunk.

    `refitted` is `steady` with codebooks that are fitted to all that is kept.
    """

    version: str
    model: str
    prompt: str
    kv_format: str
    num_tokens: int
    window_chunks: int
    steady: tuple[Line, ...]
    refitted: tuple[Line, ...]
    start: tuple[Line, ...]


class Study:
    """Rows of a capture as several formats store them, with codebooks of one life."""

    def __init__(self, capture: Capture, every: int) -> None:
        window = capture.info.window_tokens
        assert window is not None
        assert capture.info.grid is not None
        self._capture = capture
        self._head_dim = next(iter(capture.layers.values())).keys.shape[2]
        self.window_tokens = window
        self.frame_tokens = capture.info.grid[0] * capture.info.grid[1]
        self.window_chunks = window // capture.chunk_tokens[0]
        steady = range(self.window_chunks, len(capture.chunk_tokens), every)
        starting = range(2, self.window_chunks, 3)
        self.steady = {x: TeacherForced(capture, x, tuple(steady)) for x in capture.layers}
        self.start = {x: TeacherForced(capture, x, tuple(starting)) for x in capture.layers}

    def stored(self, page_format: PageFormat, life: Life, overhead: float) -> Stored:
        """K and V of every layer as they are read back."""
        capture, chunks = self._capture, len(self._capture.chunk_tokens)
        held = {"kept": self.window_chunks, "chunks": chunks, "tokens": self.window_tokens}
        centroids = codebook_centroids(page_format, life, overhead=overhead, **held)
        rows: Rows = {}
        for layer, captured in capture.layers.items():
            keys, values = (
                replay(
                    part,
                    capture.chunk_tokens,
                    page_format,
                    life,
                    kept_chunks=self.window_chunks,
                    centroids=centroids,
                    is_key=is_key,
                    seed=2 * layer + (not is_key),
                ).decoded
                for part, is_key in ((captured.keys, True), (captured.values, False))
            )
            rows[layer] = keys, values
        spec = page_format.codec
        assert spec is not None
        bits = spec.for_head_dim(self._head_dim).bits_per_element(self._head_dim)
        shared = codebook_bits(page_format, life, centroids, **held)
        return Stored(rows=rows, bits=bits, codebook_bits=shared, centroids=centroids)

    def rounded(self) -> Stored:
        """K and V of every layer in bf16."""
        rows = {
            layer: (rows.keys.bfloat16(), rows.values.bfloat16())
            for layer, rows in self._capture.layers.items()
        }
        return Stored(rows=rows, bits=16.0, codebook_bits=0.0, centroids=0)

    def kept(self, name: str, kept: Kept, read: Stored, better: Stored) -> Line:
        """Some tokens read from `better`, which has codebooks of its own only if all are."""
        forced = self.start if kept.which == "first" else self.steady
        errors = [
            attention_error(
                forced[layer], self._capture, kept, read=read.rows[layer], better=better.rows[layer]
            )
            for layer in forced
        ]
        more = extra_bits(
            read.bits, better.bits, num_tokens=kept.num_tokens, window_tokens=self.window_tokens
        )
        return _line(name, read, read.total_bits + more, errors)

    def whole(self, name: str, read: Stored, *, start: bool = False) -> Line:
        """The whole window read from `read`."""
        forced = self.start if start else self.steady
        errors = [forced[layer].error(*read.rows[layer]) for layer in forced]
        return _line(name, read, read.total_bits, errors)


def _line(name: str, read: Stored, bits: float, errors: list[float]) -> Line:
    return Line(
        name=name,
        centroids=read.centroids,
        total_bits=bits,
        error=float(np.mean(errors)),
        layer_errors=tuple(errors),
    )


def sheet(title: str, lines: tuple[Line, ...]) -> Sheet:
    """A table of ways to spend bits; the first line is what the others are compared with."""
    plain = lines[0]
    rows = []
    for line in lines:
        taken, more = 1 - line.error / plain.error, line.total_bits - plain.total_bits
        a_bit = f"{taken / more:+.0%}" if more > 0.01 else ""
        by_layer = " ".join(f"{error:.3f}" for error in line.layer_errors)
        rows.append(
            (
                line.name,
                str(line.centroids),
                f"{line.total_bits:.3f}",
                f"{16 / line.total_bits:.2f}",
                f"{line.error:.4f}",
                f"{taken:+.1%}",
                a_bit,
                by_layer,
            )
        )
    headings = ("kept apart", "centroids", "all bits", "ratio", "error of attention", "taken off")
    return Sheet(title=title, headings=(*headings, "a bit", "by layer"), rows=tuple(rows))


def steady_lines(
    study: Study, page_format: PageFormat, better: PageFormat, life: Life
) -> tuple[Line, ...]:
    """Of chunks with a full window."""
    read = study.stored(page_format, life, WINDOWED_OVERHEAD)
    fine, exact = study.stored(better, life, WINDOWED_OVERHEAD), study.rounded()
    dear = {better.name: fine, "bf16": exact}
    lines = [study.whole("nothing", read)]
    for frames in NEWEST_FRAMES:
        kept = Kept(which="newest", num_tokens=frames * study.frame_tokens)
        for name, rows in dear.items():
            lines.append(study.kept(f"newest {frames} frames in {name}", kept, read, rows))
            more = lines[-1].total_bits - lines[0].total_bits
            if more < WINDOWED_OVERHEAD / 2:
                lean = study.stored(page_format, life, WINDOWED_OVERHEAD - more)
                lines.append(study.kept("the same, for fewer centroids", kept, lean, rows))
    kept = Kept(which="oldest", num_tokens=3 * study.frame_tokens)
    lines.append(study.kept("oldest 3 frames in bf16", kept, read, exact))
    for more in (0.125, 0.25):
        rich = study.stored(page_format, life, WINDOWED_OVERHEAD + more)
        lines.append(study.whole("nothing, more centroids", rich))
    codec = page_format.codec
    assert codec is not None
    staged = PageFormat(
        name=page_format.name, codec=msgspec.structs.replace(codec, stages=codec.stages + 1)
    )
    lines.append(
        study.whole("nothing, a stage more", study.stored(staged, life, WINDOWED_OVERHEAD))
    )
    lines.append(study.whole(f"everything in {better.name}", fine))
    return tuple(lines)


def first_lines(
    study: Study, page_format: PageFormat, better: PageFormat, life: Life
) -> tuple[Line, ...]:
    """Of chunks that still read the stream's first one."""
    read = study.stored(page_format, life, WINDOWED_OVERHEAD)
    fine, exact = study.stored(better, life, WINDOWED_OVERHEAD), study.rounded()
    kept = Kept(which="first", num_tokens=3 * study.frame_tokens)
    return (
        study.whole("nothing", read, start=True),
        study.kept(f"first 3 frames in {better.name}", kept, read, fine),
        study.kept("first 3 frames in bf16", kept, read, exact),
    )


def main(
    path: Annotated[Path, typer.Argument(help="A capture of at least two windows of chunks.")],
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    kv_format: Annotated[str, typer.Option(help="A format with centroids.")] = "q2",
    better_format: Annotated[str, typer.Option(help="One with centroids and more bits.")] = "q4",
    every: Annotated[int, typer.Option(min=1, help="Every so many chunks attend.")] = 8,
) -> None:
    """Measure and write the report."""
    torch.set_num_threads(1)
    capture = load(path)
    if capture.info.window_tokens is None or capture.info.grid is None:
        raise typer.BadParameter("the capture needs a window, and frames")
    study = Study(capture, every)
    formats = get_format(kv_format), get_format(better_format)
    refitted = Life(fit_chunks=study.window_chunks)
    report = Report(
        version=__version__,
        model=capture.info.model,
        prompt=capture.info.prompt,
        kv_format=kv_format,
        num_tokens=capture.num_tokens,
        window_chunks=study.window_chunks,
        steady=steady_lines(study, *formats, Life()),
        refitted=steady_lines(study, *formats, refitted),
        start=first_lines(study, *formats, Life()),
    )
    sheets = (
        sheet("Chunks with a full window", report.steady),
        sheet("The same, codebooks fitted to all that is kept", report.refitted),
        sheet("Chunks that still read the first one", report.start),
    )
    text = "\n\n".join(["# Tokens kept apart", *map(section, sheets)]) + "\n"
    write_whole(output / "kept_tokens.json", msgspec.json.format(msgspec.json.encode(report)))
    write_whole(output / "kept_tokens.md", text.encode())
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
