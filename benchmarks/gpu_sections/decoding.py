"""Decoding K and V of one layer into a workspace, against the bandwidth of a copy."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_sections.case import Case, Row
from benchmarks.gpu_sections.pages import make_layer, make_runs, row_bytes
from benchmarks.gpu_sections.peaks import Peaks
from benchmarks.gpu_sections.setup import FORMATS, Setup
from benchmarks.gpu_sections.timing import measure
from qvg_engine.kernels.paged_attention import decode
from qvg_engine.kernels.rope import RopeGrid, RopeTables


def cases(setup: Setup, peaks: Peaks) -> Iterator[Case]:
    """Every format: K rotated, V not, as many tokens as the shortest cache has."""
    for heads in setup.heads:
        for name in FORMATS:
            row = {"format": name, "cached": setup.cached[0], "heads": heads}
            yield Case(row, partial(_decode, setup, peaks, name, heads))


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
    row = timing.row() | {"GB/s": moved / timing.ms / 1e6}
    if peaks.bytes_per_ms is not None:
        row["of a copy"] = moved / timing.ms / peaks.bytes_per_ms
    return row
