"""What paged attention costs beside dense attention, and what the decode moves.

Each test times one thing and, in turn with it, dense SDPA over the same tokens, so that
`extra_info` holds ratios from one run: other load on the machine moves both. Dense SDPA gets K and
V that lie ready; paged attention decodes them from its pages, and rotates K and Q (or does not,
where the group's name says so). `bytes_moved` are those that a decode must read and write.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import scaled_dot_product_attention

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookAction, SpanPlan
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, get_format
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.kernels.paged_attention import (
    PagedSegment,
    PageRuns,
    RopeTransform,
    Workspace,
    decode,
    paged_attention,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables

PAGE_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One pass of one layer."""

    num_queries: int
    num_tokens: int
    num_heads: int
    head_dim: int
    frame: tuple[int, int]
    num_rounds: int


SHAPES = {
    "256x8192x4x64": Shape(
        num_queries=256, num_tokens=8192, num_heads=4, head_dim=64, frame=(16, 16), num_rounds=20
    ),
    "1560x8192x4x64": Shape(
        num_queries=1560, num_tokens=8192, num_heads=4, head_dim=64, frame=(16, 16), num_rounds=8
    ),
    "pocket-192x3072x2x128": Shape(
        num_queries=192, num_tokens=3072, num_heads=2, head_dim=128, frame=(8, 8), num_rounds=40
    ),
    # A sixth of Wan 1.3B's heads, half the tokens of a window of 12 frames: the ratio of decode and
    # attention depends on neither.
    "wan-1560x9360x2x128": Shape(
        num_queries=1560, num_tokens=9360, num_heads=2, head_dim=128, frame=(30, 52), num_rounds=5
    ),
}


def plan_of_first_span(layout: CacheLayout) -> SpanPlan | None:
    """Fit a codebook into slot 0 of each book; None where there are no books."""
    books = layout.num_books
    if not books:
        return None
    return SpanPlan(
        actions=np.full(books, CodebookAction.FIT, np.int8),
        slots=np.zeros(books, np.int32),
        warm_from=np.full(books, -1, np.int32),
    )


def slot_of_all_rows(layout: CacheLayout, num_pages: int) -> NDArray[np.int32]:
    """A row table of one slot."""
    return np.arange(layout.codebook_rows(num_pages), dtype=np.int32)[None]


class Pass:
    """The cached tokens of one pass in shuffled pages, and the same dense."""

    def __init__(self, shape: Shape, page_format: str, dtype: torch.dtype) -> None:
        tokens, heads, head_dim = shape.num_tokens, shape.num_heads, shape.head_dim
        num_pages = -(-tokens // PAGE_SIZE)
        layout = CacheLayout(
            geometry=CacheGeometry(num_layers=1, num_kv_heads=heads, head_dim=head_dim),
            page_size=PAGE_SIZE,
            formats=(LayerFormats(keys=get_format(page_format), values=get_format(page_format)),),
            compute_itemsize=dtype.itemsize,
            codebook_overhead=0.33,
            max_live_codebooks=1,
        )
        self.span = plan_of_first_span(layout)
        self.store = PageStore(
            layout,
            num_pages=num_pages,
            device="cpu",
            dtype=dtype,
            row_table=None if self.span is None else slot_of_all_rows(layout, num_pages),
        )
        self.page_ids = np.random.default_rng(0).permutation(num_pages).astype(np.int32)
        self.rows = torch.randn(2, tokens, heads, head_dim).to(dtype)
        self.write()
        first = np.arange(num_pages) * PAGE_SIZE
        self.segment = PagedSegment(
            self.store.layer(0),
            PageRuns(
                self.page_ids.astype(np.int64),
                first,
                np.zeros(num_pages, np.int64),
                np.minimum(PAGE_SIZE, tokens - first),
            ),
        )
        self.workspace = Workspace(
            num_heads=heads, head_dim=head_dim, max_tokens=tokens, device="cpu", dtype=dtype
        )
        self.queries = torch.randn(shape.num_queries, heads, head_dim).to(dtype)
        self.positions = np.arange(tokens, tokens + shape.num_queries)
        self.grid = RopeGrid(RopeTables(head_dim=head_dim), *shape.frame)
        self._dense = [x.transpose(0, 1).contiguous()[None] for x in (*self.rows, self.queries)]

    @property
    def bytes_moved(self) -> int:
        """Bytes that a decode of K and V reads from pages and writes to the workspace."""
        read = self.store.layout.page_bytes * self.segment.num_tokens // PAGE_SIZE
        return read + self.rows.nbytes

    def write(self) -> None:
        keys, values = self.rows
        self.store.write(0, self.page_ids, keys=keys, values=values, span=self.span)

    def decode(self) -> None:
        pages, runs = self.segment.pages, self.segment.runs
        decode(pages.keys, runs, self.workspace.keys, start=0, rope=self.grid)
        decode(pages.values, runs, self.workspace.values, start=0, rope=None)

    def attend(self) -> None:
        paged_attention(
            self.queries,
            [self.segment],
            transform=RopeTransform(self.grid),
            query_positions=self.positions,
            workspace=self.workspace,
        )

    def attend_unrotated(self) -> None:
        """The same work as dense attention, and the decode."""
        paged_attention(self.queries, [self.segment], workspace=self.workspace)

    def attend_dense(self) -> None:
        keys, values, queries = self._dense
        scaled_dot_product_attention(queries, keys, values)


def measure(
    benchmark: BenchmarkFixture, subject: Callable[[], None], case: Pass, num_rounds: int
) -> None:
    """Time `subject`; dense attention runs before each round, outside of the timing."""
    baseline: list[float] = []

    def run_baseline() -> None:
        start = time.perf_counter()
        case.attend_dense()
        baseline.append(time.perf_counter() - start)

    pedantic: Callable[..., None] = benchmark.pedantic
    pedantic(subject, setup=run_baseline, rounds=num_rounds, warmup_rounds=1)
    assert benchmark.stats is not None
    stats = benchmark.stats.stats
    benchmark.extra_info["dense_attention_median_ms"] = statistics.median(baseline) * 1e3
    benchmark.extra_info["ratio_of_medians"] = stats.median / statistics.median(baseline)
    benchmark.extra_info["ratio_of_minima"] = stats.min / min(baseline)
    benchmark.extra_info["bytes_moved"] = case.bytes_moved
    benchmark.extra_info["num_threads"] = torch.get_num_threads()


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture(params=["fp32-dense", "fp32-bf16", "bf16-dense", "fp32-q2", "fp32-q1"])
def case(request: pytest.FixtureRequest, shape: Shape) -> Pass:
    """Compute dtype and page format."""
    compute, page_format = request.param.split("-")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
    return Pass(shape, page_format, dtype)


@pytest.mark.benchmark(group="attention")
def test_decode_and_attend(benchmark: BenchmarkFixture, case: Pass, shape: Shape) -> None:
    measure(benchmark, case.attend, case, shape.num_rounds)


@pytest.mark.benchmark(group="attention, without RoPE")
def test_decode_and_attend_unrotated(benchmark: BenchmarkFixture, case: Pass, shape: Shape) -> None:
    measure(benchmark, case.attend_unrotated, case, shape.num_rounds)


@pytest.mark.benchmark(group="decode")
def test_decode(benchmark: BenchmarkFixture, case: Pass, shape: Shape) -> None:
    measure(benchmark, case.decode, case, shape.num_rounds)


@pytest.mark.benchmark(group="write")
def test_write(benchmark: BenchmarkFixture, case: Pass, shape: Shape) -> None:
    measure(benchmark, case.write, case, shape.num_rounds)
