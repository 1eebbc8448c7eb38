"""Both strategies against softmax attention in fp64 over the rows that were written."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.paged_attention import (
    AttentionResult,
    DenseSegment,
    PagedSegment,
    RopeTransform,
    Segment,
    Strategy,
    Workspace,
    paged_attention,
    paged_attention_with_lse,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.reference import rotate

MakeCache = Callable[..., Any]

# Relative errors (2-norm of the difference over 2-norm). In fp32, a few hundred sums and exp.
# In 16 bits q, k, v, the softmax and the output are each rounded once, to eps / 2 at most and
# eps / 4 or so on average; five independent roundings make sqrt(5) * eps / 4.
TOLERANCES = {
    torch.float32: 1e-6,
    torch.bfloat16: 0.6 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 0.6 * torch.finfo(torch.float16).eps,
}

STRATEGIES = pytest.mark.parametrize("strategy", ["workspace", "reference"])


def exact_attention(
    queries: Tensor, keys: Tensor, values: Tensor, log_weights: Tensor | None = None
) -> AttentionResult:
    """fp64; queries, keys and values [tokens, heads, head_dim]."""
    q, k, v = (x.double().transpose(0, 1) for x in (queries, keys, values))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if log_weights is not None:
        scores = scores + log_weights.double()
    return AttentionResult((scores.softmax(-1) @ v).transpose(0, 1), scores.logsumexp(-1))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def make_workspace(
    queries: Tensor, *, max_tokens: int = 4096, num_heads: int | None = None
) -> Workspace:
    """Filled with NaN."""
    workspace = Workspace(
        num_heads=num_heads or queries.shape[1],
        head_dim=queries.shape[2],
        max_tokens=max_tokens,
        device="cpu",
        dtype=queries.dtype,
    )
    for buffer in (workspace.keys, workspace.values, workspace.bias):
        buffer.fill_(torch.nan)
    return workspace


def make_transform(head_dim: int) -> RopeTransform:
    return RopeTransform(RopeGrid(RopeTables(head_dim=head_dim), height=4, width=16))


def turn(rows: Tensor, positions: NDArray[np.int64], transform: RopeTransform) -> Tensor:
    return rotate(rows.double(), *transform.grid.rows(positions))


@STRATEGIES
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 1567])
@pytest.mark.parametrize("page_size", [64, 128])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 128), (2, 64), (3, 128)])
def test_history_and_own_chunk(
    make_cache: MakeCache,
    strategy: Strategy,
    num_tokens: int,
    page_size: int,
    num_heads: int,
    head_dim: int,
) -> None:
    cache = make_cache(num_tokens, num_heads=num_heads, head_dim=head_dim, page_size=page_size)
    queries, keys, values = torch.randn(3, 50, num_heads, head_dim)
    own = np.arange(num_tokens, num_tokens + 50)
    transform = make_transform(head_dim)
    out, lse = paged_attention_with_lse(
        queries,
        [cache.segment, DenseSegment(keys=keys, values=values, positions=own)],
        transform=transform,
        query_positions=own,
        workspace=make_workspace(queries),
        strategy=strategy,
    )
    positions = np.concatenate((cache.positions, own))
    expected = exact_attention(
        turn(queries, own, transform),
        turn(torch.cat((cache.keys, keys)), positions, transform),
        torch.cat((cache.values, values)),
    )
    assert relative_error(out, expected.out) <= TOLERANCES[torch.float32]
    torch.testing.assert_close(lse.double(), expected.lse, rtol=0, atol=1e-5)
    assert out.is_contiguous()


@STRATEGIES
@pytest.mark.parametrize("visible", [[(70, 299)], [(0, 100), (190, 300)], [(200, 201)], [(3, 9)]])
def test_cut_pages_and_sinks_keep_their_positions(
    make_cache: MakeCache, strategy: Strategy, visible: list[tuple[int, int]]
) -> None:
    cache = make_cache(300, visible=visible)
    queries = torch.randn(20, 2, 64)
    transform = make_transform(64)
    own = np.arange(300, 320)
    out = paged_attention(
        queries,
        [cache.segment],
        transform=transform,
        query_positions=own,
        workspace=make_workspace(queries),
        strategy=strategy,
    )
    expected = exact_attention(
        turn(queries, own, transform),
        turn(cache.keys, cache.positions, transform),
        cache.values,
    )
    assert relative_error(out, expected.out) <= TOLERANCES[torch.float32]


@STRATEGIES
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("page_dtype", [None, torch.bfloat16], ids=["dense", "bf16"])
def test_compute_and_page_dtypes(
    make_cache: MakeCache, strategy: Strategy, dtype: torch.dtype, page_dtype: torch.dtype | None
) -> None:
    page_dtype = page_dtype or dtype
    cache = make_cache(200, key_dtype=page_dtype, value_dtype=page_dtype, head_dim=128)
    queries = torch.randn(64, 2, 128).to(dtype)
    transform = make_transform(128)
    own = np.arange(200, 264)
    out = paged_attention(
        queries,
        [cache.segment],
        transform=transform,
        query_positions=own,
        workspace=make_workspace(queries),
        strategy=strategy,
    )
    expected = exact_attention(
        turn(queries, own, transform), turn(cache.keys, cache.positions, transform), cache.values
    )
    assert out.dtype == dtype
    assert relative_error(out, expected.out) <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_tokens", [1, 33, 64, 250, 399, 400])
def test_pieces_merge_to_the_whole(
    make_cache: MakeCache, dtype: torch.dtype, max_tokens: int
) -> None:
    cache = make_cache(300, key_dtype=dtype, value_dtype=dtype)
    queries, keys, values = torch.randn(3, 100, 2, 64).to(dtype)
    own = np.arange(300, 400)
    weights = torch.rand(100)
    segments = [
        cache.segment,
        DenseSegment(keys=keys, values=values, positions=own, log_weights=weights),
    ]
    results = [
        paged_attention_with_lse(
            queries,
            segments,
            transform=make_transform(64),
            query_positions=own,
            workspace=make_workspace(queries, max_tokens=size),
        )
        for size in (4096, max_tokens)
    ]
    # Each of up to 400 merges rounds the sum so far: sqrt(400) roundings of 6e-8, and as much again
    # for the log-sum-exps, are the largest part of the error in fp32.
    assert relative_error(results[1].out, results[0].out) <= max(3e-6, TOLERANCES[dtype])
    torch.testing.assert_close(results[1].lse, results[0].lse, rtol=0, atol=1e-4)


@STRATEGIES
@pytest.mark.parametrize("max_tokens", [4096, 100])
def test_segments_in_any_order_and_number_are_one_set(
    make_cache: MakeCache, strategy: Strategy, max_tokens: int
) -> None:
    cache = make_cache(300)
    queries = torch.randn(30, 2, 64)
    parts: Sequence[Segment] = [cache.segment.cut(*ends) for ends in ((77, 300), (0, 10), (10, 77))]
    shared = {"workspace": make_workspace(queries, max_tokens=max_tokens), "strategy": strategy}
    whole = paged_attention(queries, [cache.segment], **cast(Any, shared))
    split = paged_attention(queries, parts, **cast(Any, shared))
    assert relative_error(split, whole) <= TOLERANCES[torch.float32]


@STRATEGIES
@pytest.mark.parametrize("max_tokens", [4096, 17])
def test_a_log_weight_counts_as_repeated_rows(
    make_cache: MakeCache, strategy: Strategy, max_tokens: int
) -> None:
    cache = make_cache(100)
    queries = torch.randn(30, 2, 64)
    text = torch.randn(2, 4, 2, 64)
    counts = torch.tensor([1, 1, 1, 500])
    out = paged_attention(
        queries,
        [cache.segment, DenseSegment(keys=text[0], values=text[1], log_weights=counts.log())],
        workspace=make_workspace(queries, max_tokens=max_tokens),
        strategy=strategy,
    )
    keys, values = text.repeat_interleave(counts, dim=1)
    expected = exact_attention(
        queries, torch.cat((cache.keys, keys)), torch.cat((cache.values, values))
    )
    assert relative_error(out, expected.out) <= TOLERANCES[torch.float32]


@STRATEGIES
def test_rows_without_positions_are_not_rotated(make_cache: MakeCache, strategy: Strategy) -> None:
    cache = make_cache(64)
    queries, keys, values = torch.randn(3, 10, 2, 64)
    transform = make_transform(64)
    own = np.arange(64, 74)
    out = paged_attention(
        queries,
        [DenseSegment(keys=keys, values=values), cache.segment],
        transform=transform,
        query_positions=own,
        workspace=make_workspace(queries),
        strategy=strategy,
    )
    expected = exact_attention(
        turn(queries, own, transform),
        torch.cat((keys.double(), turn(cache.keys, cache.positions, transform))),
        torch.cat((values, cache.values)),
    )
    assert relative_error(out, expected.out) <= TOLERANCES[torch.float32]


@STRATEGIES
def test_empty_segments_change_nothing(make_cache: MakeCache, strategy: Strategy) -> None:
    cache = make_cache(100)
    queries = torch.randn(5, 2, 64)
    nothing = torch.empty(0, 2, 64)
    empty = [DenseSegment(keys=nothing, values=nothing), cache.segment.cut(0, 0)]
    workspace = make_workspace(queries)
    with_empty = paged_attention(
        queries, [*empty, cache.segment, *empty], workspace=workspace, strategy=strategy
    )
    without = paged_attention(queries, [cache.segment], workspace=workspace, strategy=strategy)
    assert torch.equal(with_empty, without)


@STRATEGIES
def test_nothing_seen_is_zero(make_cache: MakeCache, strategy: Strategy) -> None:
    queries = torch.randn(5, 2, 64)
    for segments in ([], [make_cache(64).segment.cut(0, 0)]):
        out, lse = paged_attention_with_lse(
            queries, segments, workspace=make_workspace(queries), strategy=strategy
        )
        assert torch.equal(out, torch.zeros_like(queries))
        assert torch.equal(lse, torch.full((2, 5), -torch.inf))


@STRATEGIES
@pytest.mark.parametrize("max_tokens", [4096, 50])
def test_queries_may_share_kv_heads(
    make_cache: MakeCache, strategy: Strategy, max_tokens: int
) -> None:
    cache = make_cache(100)
    queries = torch.randn(30, 6, 64)
    out, lse = paged_attention_with_lse(
        queries,
        [cache.segment],
        workspace=make_workspace(queries, num_heads=2, max_tokens=max_tokens),
        strategy=strategy,
    )
    expected = exact_attention(
        queries, *(x.repeat_interleave(3, dim=1) for x in (cache.keys, cache.values))
    )
    assert relative_error(out, expected.out) <= TOLERANCES[torch.float32]
    torch.testing.assert_close(lse.double(), expected.lse, rtol=0, atol=1e-5)


def test_scale_replaces_the_default(make_cache: MakeCache) -> None:
    cache = make_cache(100)
    queries = torch.randn(30, 2, 64)
    out = paged_attention(
        queries, [cache.segment], workspace=make_workspace(queries), scale=0.5 / math.sqrt(64)
    )
    expected = exact_attention(queries * 0.5, cache.keys, cache.values)
    assert relative_error(out, expected.out) <= TOLERANCES[torch.float32]


def test_the_workspace_keeps_nothing_from_call_to_call(make_cache: MakeCache) -> None:
    small, large = make_cache(40), make_cache(900)
    queries = torch.randn(16, 2, 64)
    workspace = make_workspace(queries, max_tokens=512)
    pointers = [x.data_ptr() for x in (workspace.keys, workspace.values, workspace.bias)]
    first = paged_attention(queries, [small.segment], workspace=workspace)
    paged_attention(queries, [large.segment], workspace=workspace)
    again = paged_attention(queries, [small.segment], workspace=workspace)
    assert torch.equal(first, again)
    assert [x.data_ptr() for x in (workspace.keys, workspace.values, workspace.bias)] == pointers


def test_rotation_without_query_positions_is_refused(make_cache: MakeCache) -> None:
    segment: PagedSegment = make_cache(64).segment
    queries = torch.randn(5, 2, 64)
    with pytest.raises(AssertionError, match="query_positions"):
        paged_attention(
            queries,
            [segment],
            transform=make_transform(64),
            workspace=make_workspace(queries),
        )
