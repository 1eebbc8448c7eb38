"""What decoding pages of q2 and q1 costs beside pages of qvg.

    OMP_NUM_THREADS=1 pytest benchmarks/test_decode.py

K, rotated, and V of one layer, in shuffled pages of 64 tokens, by one thread and the processor's
clock. Codes, scales and centroids are random: what they are does not matter to the time. Formats
take turns in every round, so that other load on the machine moves all of them; `ratio_of_minima`
and `ratio_of_medians` are to qvg in the same rounds.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from qvg_engine.kernels.codec import (
    PRESETS,
    CodedPages,
    allocate_pages,
    consecutive_slots,
    decode,
    half_split_groups,
)
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope import RopeGrid, RopeTables

PAGE_SIZE = 64
BASELINE = "qvg"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The cached tokens of one layer that a pass reads."""

    num_tokens: int
    num_heads: int
    head_dim: int
    centroids: int
    frame: tuple[int, int]
    num_rounds: int


SHAPES = {
    "pocket-3072x2x128": Shape(
        num_tokens=3072, num_heads=2, head_dim=128, centroids=60, frame=(8, 8), num_rounds=200
    ),
    "8192x4x64": Shape(
        num_tokens=8192, num_heads=4, head_dim=64, centroids=60, frame=(16, 16), num_rounds=100
    ),
    # One chunk of Wan 1.3B.
    "wan-4680x12x128": Shape(
        num_tokens=4680, num_heads=12, head_dim=128, centroids=60, frame=(30, 52), num_rounds=20
    ),
}


def make_pages(name: str, shape: Shape, *, is_key: bool) -> CodedPages:
    """Pages of random numbers, all of one codebook."""
    spec = msgspec.structs.replace(PRESETS[name], centroids=shape.centroids)
    pages = allocate_pages(
        spec,
        num_pages=-(-shape.num_tokens // PAGE_SIZE),
        num_heads=shape.num_heads,
        page_size=PAGE_SIZE,
        head_dim=shape.head_dim,
        row_table=consecutive_slots(spec, 1),
        device="cpu",
        channel_groups=half_split_groups(shape.head_dim, spec.group) if is_key else None,
    )
    pages.codes.copy_(torch.randint(256, pages.codes.shape))
    pages.ids.copy_(torch.randint(shape.centroids, pages.ids.shape))
    # Scales between 2**-5 and 2.
    pages.scales.copy_(torch.randint(0x10, 0x40, pages.scales.shape))
    pages.codebooks.rows.copy_(torch.randn(pages.codebooks.rows.shape))
    pages.codebooks.counts[:] = shape.centroids
    pages.slot_of_page[:] = 0
    return pages


def make_runs(shape: Shape) -> PageRuns:
    num_pages = -(-shape.num_tokens // PAGE_SIZE)
    first = np.arange(num_pages) * PAGE_SIZE
    return PageRuns(
        np.random.default_rng(0).permutation(num_pages).astype(np.int64),
        first,
        np.zeros(num_pages, np.int64),
        np.minimum(PAGE_SIZE, shape.num_tokens - first),
    )


def make_decode(name: str, shape: Shape, dtype: torch.dtype, *, parts: str) -> Callable[[], None]:
    """What decodes the parts "K" and "V" to the same place, one after the other."""
    runs = make_runs(shape)
    grid = RopeGrid(RopeTables(head_dim=shape.head_dim), *shape.frame)
    out = torch.empty(shape.num_heads, shape.num_tokens, shape.head_dim, dtype=dtype)
    pages = [make_pages(name, shape, is_key=part == "K") for part in parts]

    def run() -> None:
        for part, stored in zip(parts, pages, strict=True):
            decode(stored, runs, out, start=0, rope=grid if part == "K" else None)

    return run


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", ["qvg", "q2", "q1"])
@pytest.mark.parametrize("parts", ["K", "V", "KV"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("geometry", SHAPES)
def test_decode(
    benchmark: BenchmarkFixture, geometry: str, dtype: torch.dtype, parts: str, name: str
) -> None:
    shape = SHAPES[geometry]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    subject = make_decode(name, shape, dtype, parts=parts)
    baseline = make_decode(BASELINE, shape, dtype, parts=parts)
    seconds: list[float] = []

    def run_baseline() -> None:
        start = time.process_time()
        baseline()
        seconds.append(time.process_time() - start)

    benchmark.group = f"decode {parts}, {geometry}, {str(dtype).removeprefix('torch.')}"
    pedantic: Callable[..., None] = benchmark.pedantic
    pedantic(subject, setup=run_baseline, rounds=shape.num_rounds, warmup_rounds=2)
    assert benchmark.stats is not None
    stats = benchmark.stats.stats
    benchmark.extra_info["ratio_of_minima"] = stats.min / min(seconds)
    benchmark.extra_info["ratio_of_medians"] = stats.median / statistics.median(seconds)
    benchmark.extra_info["ms_per_1000_tokens"] = stats.median * 1e6 / shape.num_tokens
