"""Decoding K and V of one layer, dense or to 8 bits, against the bandwidth of a copy."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_sections.case import Case, Row
from benchmarks.gpu_sections.pages import make_layer, make_runs, row_bytes
from benchmarks.gpu_sections.peaks import Peaks
from benchmarks.gpu_sections.setup import FORMATS, Setup
from benchmarks.gpu_sections.timing import measure
from qvg_engine.kernels.codec import CodedPages
from qvg_engine.kernels.paged_attention import EightBitWorkspace, decode
from qvg_engine.kernels.paged_attention.decode_eight_bit import (
    bound_pages,
    decode_keys,
    decode_values,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables


def cases(setup: Setup, peaks: Peaks) -> Iterator[Case]:
    """Every format: K rotated, V not, as many tokens as the shortest cache has."""
    for heads in setup.heads:
        for name in FORMATS:
            row = {"format": name, "cached": setup.cached[0], "heads": heads}
            to = str(setup.dtype).removeprefix("torch.")
            yield Case(row | {"to": to}, partial(_decode, setup, peaks, name, heads))
            yield Case(
                row | {"to": "8 bits"}, partial(_decode_eight_bit, setup, peaks, name, heads)
            )


def _decode(setup: Setup, peaks: Peaks, name: str, heads: int, left: float) -> Row:
    num_tokens, head_dim = setup.cached[0], setup.head_dim
    layer = make_layer(name, num_tokens, num_heads=heads, head_dim=head_dim, device=setup.device)
    runs = make_runs(num_tokens)
    grid = RopeGrid(RopeTables(head_dim=head_dim, device=setup.device), *setup.frame)
    shape = (heads, num_tokens, head_dim)
    keys, values = (torch.empty(shape, device=setup.device, dtype=setup.dtype) for _ in range(2))

    def run() -> None:
        decode(layer.keys, runs, keys, start=0, rope=grid)
        decode(layer.values, runs, values, start=0, rope=None)

    timing = measure(run, setup.device, seconds=left, fewest_runs=setup.fewest_runs)
    moved = 2 * num_tokens * heads * row_bytes(name, head_dim) + keys.nbytes + values.nbytes
    return timing.row() | _bandwidth(moved, timing.ms, peaks)


def _decode_eight_bit(setup: Setup, peaks: Peaks, name: str, heads: int, left: float) -> Row:
    """The scales of V's channels are part of it: what is read for them is counted, too."""
    num_tokens, head_dim = setup.cached[0], setup.head_dim
    layer = make_layer(name, num_tokens, num_heads=heads, head_dim=head_dim, device=setup.device)
    runs = make_runs(num_tokens)
    grid = RopeGrid(RopeTables(head_dim=head_dim, device=setup.device), *setup.frame)
    workspace = EightBitWorkspace(
        num_heads=heads, head_dim=head_dim, max_tokens=num_tokens, device=setup.device
    )

    def run() -> None:
        workspace.clear()
        bound_pages(workspace, layer.values, runs)
        decode_keys(workspace, layer.keys, runs, start=0, rope=grid)
        decode_values(workspace, layer.values, runs, start=0)

    timing = measure(run, setup.device, seconds=left, fewest_runs=setup.fewest_runs)
    read = row_bytes(name, head_dim)
    # Of codes, scales and codebooks are read for the bound; of other pages, all rows of V.
    bound_bytes, books_bytes = read, 0
    if isinstance(layer.values, CodedPages):
        scales = layer.values.scales
        bound_bytes, books_bytes = (
            scales.shape[3] * scales.itemsize,
            layer.values.codebooks.num_bytes,
        )
    # K, the scale of a row, and V.
    written = head_dim + 4 + head_dim * workspace.values.itemsize
    moved = num_tokens * heads * (2 * read + bound_bytes + written) + books_bytes
    return timing.row() | _bandwidth(moved, timing.ms, peaks)


def _bandwidth(moved: int, ms: float, peaks: Peaks) -> Row:
    row = {"GB/s": moved / ms / 1e6}
    if peaks.bytes_per_ms is not None:
        row["of a copy"] = moved / ms / peaks.bytes_per_ms
    return row
