"""Measures what the strategies cost on the device at hand, for `CostModel`."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.random_pages import random_like, shuffled_runs
from qvg_engine.kernels.paged_attention.attention import paged_attention
from qvg_engine.kernels.paged_attention.cost_model import (
    CANDIDATES,
    QUERY_BLOCK,
    Candidate,
    Cost,
    CostModel,
    Sample,
    fit,
)
from qvg_engine.kernels.paged_attention.pages import LayerPages
from qvg_engine.kernels.paged_attention.segments import DenseSegment, PagedSegment
from qvg_engine.kernels.paged_attention.transform import RopeTransform
from qvg_engine.kernels.paged_attention.workspace import Workspace
from qvg_engine.kernels.rope import RopeGrid, RopeTables

FEW_TOKENS, MANY_TOKENS = 4096, 16_384
"""Cached tokens of the measured passes."""
MOST_QUERIES = 4096
"""Longer passes are not measured: time grows with the queries from here on."""

_RUNS = 5
_HEAD_START_CYCLES = 20_000_000
_OWN_TOKENS = 64

Timer = Callable[[Callable[[], object]], float]
"""The time of a call in ms; it may call several times."""
Points = tuple[tuple[int, int], ...]
"""(queries, cached tokens) of the measured passes."""


def measured_points(queries: int) -> Points:
    """The passes to measure for an engine whose passes have so many queries."""
    many = max(2 * QUERY_BLOCK, min(queries, MOST_QUERIES))
    return ((QUERY_BLOCK, FEW_TOKENS), (QUERY_BLOCK, MANY_TOKENS), (many, MANY_TOKENS))


def measure_costs(
    like: LayerPages, workspace: Workspace, *, points: Points, timer: Timer | None = None
) -> CostModel:
    """Fit the costs of all candidates, for pages such as these, on the device of the workspace.

    Args:
        like: coded pages that `gpu_fused.supports`; only their format and shape are looked at.
        workspace: where pages are decoded to.
        points: at least three, of two numbers of queries and two of tokens.
        timer: `device_timer` unless given.

    K is rotated. Every pass has some uncached tokens of its own, as in an engine, so that what it
    takes to merge them is counted; attention among a chunk's own tokens is not: it is the same for
    all. The host waits for the device.
    """
    device = workspace.keys.device
    timer = device_timer(device) if timer is None else timer
    most = max(tokens for _, tokens in points)
    layer = _random_layer(like, most, device)
    samples: Mapping[Candidate, list[Sample]] = {candidate: [] for candidate in CANDIDATES}
    for queries, tokens in points:
        run = _make_pass(layer, workspace, queries, tokens)
        for candidate, found in samples.items():
            found.append(Sample(queries, tokens, timer(partial(run, candidate))))
    costs: dict[Candidate, Cost] = {name: fit(found) for name, found in samples.items()}
    return CostModel(costs)


def device_timer(device: torch.device) -> Timer:
    """Medians of a few calls after one that compiles; on a GPU between events on the device.

    There the calls are queued while the device waits, so that it never waits for the host: in a
    step of an engine, the host is ahead.
    """

    def on_gpu(run: Callable[[], object]) -> float:
        run()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_RUNS)]
        torch.cuda._sleep(_HEAD_START_CYCLES)
        for start, end in events:
            start.record()
            run()
            end.record()
        torch.cuda.synchronize(device)
        return float(statistics.median(start.elapsed_time(end) for start, end in events))

    def on_cpu(run: Callable[[], object]) -> float:
        run()
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)

    return on_gpu if device.type == "cuda" else on_cpu


def _random_layer(like: LayerPages, num_tokens: int, device: torch.device) -> LayerPages:
    def make(pages: object) -> CodedPages:
        assert isinstance(pages, CodedPages), pages
        num_pages = -(-num_tokens // pages.page_size)
        return random_like(pages, num_pages=num_pages, device=device)

    return LayerPages(keys=make(like.keys), values=make(like.values))


def _make_pass(
    layer: LayerPages, workspace: Workspace, num_queries: int, num_tokens: int
) -> Callable[[Candidate], Tensor]:
    """A pass over so many tokens in shuffled pages, to be run with any candidate."""
    num_heads, _, head_dim = workspace.keys.shape
    device, dtype = workspace.keys.device, workspace.keys.dtype
    generator = torch.Generator(device).manual_seed(0)

    def draw(count: int) -> Tensor:
        shape = (count, num_heads, head_dim)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    queries = draw(num_queries)
    positions = np.arange(num_tokens, num_tokens + num_queries)
    own = DenseSegment(
        keys=draw(_OWN_TOKENS), values=draw(_OWN_TOKENS), positions=positions[:_OWN_TOKENS]
    )
    cached = PagedSegment(layer, shuffled_runs(num_tokens, page_size=layer.keys.page_size))
    grid = RopeGrid(RopeTables(head_dim=head_dim, device=device), 32, 32)

    def run(candidate: Candidate) -> Tensor:
        return paged_attention(
            queries,
            (cached, own),
            workspace=workspace,
            transform=RopeTransform(grid),
            query_positions=positions,
            strategy=candidate,
        )

    return run
