"""Attention of many passes at once: Triton's kernels against plain torch, pass by pass."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels import gpu
from qvg_engine.kernels.codec import PRESETS

if not gpu.has_triton():
    pytest.skip("Triton is not installed", allow_module_level=True)

from qvg_engine.kernels.paged_attention import (
    AttentionPass,
    DenseSegment,
    IdentityTransform,
    LayerPages,
    PagedSegment,
    ReadTransform,
    RopeTransform,
    Strategy,
    Workspace,
    batched_attention,
    gpu_fused,
    gpu_merge,
    paged_attention,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from tests.kernels.conftest import as_runs
from tests.kernels.paged_attention.test_gpu_fused import layer as random_layer

HEADS, HEAD_DIM, PAGE_SIZE = 1, 64, 32
# Of (page, first token, begin, end): a window behind a sink, windows that cut pages at both ends, a
# page that is part full, a single token, none at all.
STREAMS = [
    [(3, 0, 0, 12), (0, 256, 20, 32), (6, 288, 0, 17)],
    [(5, 64, 31, 32)],
    [],
    [(1, 0, 0, 32), (4, 32, 0, 7)],
    [(7, 128, 9, 30)],
    [(1, 64, 20, 32)],
    [(6, 0, 0, 5)],
    [(3, 192, 17, 32)],
]
LENGTHS = (7, 1, 9, 20, 3, 12, 5, 4)


@pytest.fixture(autouse=True)
def as_on_a_gpu() -> Iterator[None]:
    with gpu.cpu_as_gpu():
        yield


def layer(name: str) -> LayerPages:
    return random_layer(name, HEAD_DIM, num_heads=HEADS, page_size=PAGE_SIZE)


def workspace(dtype: torch.dtype = torch.float32, *, max_tokens: int = 96) -> Workspace:
    return Workspace(
        num_heads=HEADS, head_dim=HEAD_DIM, max_tokens=max_tokens, device="cpu", dtype=dtype
    )


def make_grid(height: int = 4, width: int = 4, tables: RopeTables | None = None) -> RopeGrid:
    return RopeGrid(tables or RopeTables(head_dim=HEAD_DIM), height=height, width=width)


def make_passes(
    pages: LayerPages,
    transforms: list[ReadTransform],
    *,
    dtype: torch.dtype = torch.float32,
    own: bool = True,
    num_passes: int = len(LENGTHS),
) -> list[AttentionPass]:
    """One a stream; each sees its pages, and tokens of its own."""
    lengths = LENGTHS[:num_passes]
    passes = []
    for index, (count, stop) in enumerate(zip(lengths, np.cumsum(lengths).tolist(), strict=True)):
        positions = np.arange(400 + 10 * index, 400 + 10 * index + count)
        keys, values = torch.randn(2, count, HEADS, HEAD_DIM).to(dtype)
        dense = DenseSegment(keys=keys, values=values, positions=positions)
        paged = PagedSegment(pages, as_runs(STREAMS[index]))
        passes.append(
            AttentionPass(
                start=stop - count,
                stop=stop,
                segments=(paged, dense) if own else (paged,),
                transform=transforms[index % len(transforms)],
                positions=positions,
            )
        )
    return passes


def alone(queries: Tensor, part: AttentionPass, strategy: Strategy = "reference") -> Tensor:
    return paged_attention(
        queries[part.start : part.stop],
        part.segments,
        workspace=workspace(queries.dtype),
        transform=part.transform,
        query_positions=part.positions,
        strategy=strategy,
    )


def check(queries: Tensor, passes: list[AttentionPass], found: Tensor, tolerance: float) -> None:
    assert found.dtype == queries.dtype
    assert found.isfinite().all()
    for part in passes:
        wanted = alone(queries.float(), part)
        left = (found[part.start : part.stop] - wanted).abs().amax()
        assert left <= tolerance * wanted.abs().amax(), part.start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", PRESETS)
def test_eight_streams_share_a_launch(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    attend = gpu_fused.attend

    def noting(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        launches.append(len(given[2]))
        return attend(*given, **named)

    monkeypatch.setattr(gpu_fused, "attend", noting)
    queries = torch.randn(sum(LENGTHS), HEADS, HEAD_DIM).to(dtype)
    passes = make_passes(layer(name), [RopeTransform(make_grid())], dtype=dtype)
    found = batched_attention(queries, passes, workspace=workspace(dtype), strategy="fused")
    assert launches == [sum(bool(entries) for entries in STREAMS)]
    check(queries, passes, found, 2e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", ["q2", "qvg-pro"])
def test_eight_streams_in_a_workspace(name: str, dtype: torch.dtype) -> None:
    """Of less room than the longest needs."""
    queries = torch.randn(sum(LENGTHS), HEADS, HEAD_DIM).to(dtype)
    passes = make_passes(layer(name), [RopeTransform(make_grid())], dtype=dtype)
    found = batched_attention(queries, passes, workspace=workspace(dtype, max_tokens=40))
    check(queries, passes, found, 2e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("num_programs", [1, 1000])
def test_grids_differ(num_programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch a grid; a pass without any token gets zeros. Also where entries are split."""
    monkeypatch.setattr(gpu_fused, "num_programs", lambda device: num_programs)
    tables = RopeTables(head_dim=HEAD_DIM)
    transforms: list[ReadTransform] = [
        RopeTransform(make_grid(4, 4, tables)),
        RopeTransform(make_grid(3, 5, tables)),
        IdentityTransform(),
    ]
    queries = torch.randn(sum(LENGTHS[:5]), HEADS, HEAD_DIM)
    passes = make_passes(layer("qvg"), transforms, own=False, num_passes=5)
    found = batched_attention(queries, passes, workspace=workspace(), strategy="fused")
    check(queries, passes, found, 2e-5)
    (empty,) = [part for part in passes if not part.segments[0].num_tokens]
    assert not found[empty.start : empty.stop].any()


@pytest.mark.parametrize("strategy", ["fused", "workspace", "reference"])
def test_query_heads_that_share_keys(strategy: Strategy) -> None:
    queries = torch.randn(sum(LENGTHS[:3]), 2 * HEADS, HEAD_DIM)
    passes = make_passes(layer("q2"), [RopeTransform(make_grid())], num_passes=3)
    found = batched_attention(queries, passes, workspace=workspace(), strategy=strategy)
    check(queries, passes, found, 2e-5)


def test_pass_by_pass_is_the_same_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_fused, "num_programs", lambda device: 16)
    queries = torch.randn(sum(LENGTHS[:4]), HEADS, HEAD_DIM)
    passes = make_passes(layer("qvg"), [RopeTransform(make_grid())], num_passes=4)
    found = batched_attention(
        queries, passes, workspace=workspace(), strategy="fused", together=False
    )
    for part in passes:
        wanted = alone(queries, part, "fused")
        assert torch.equal(found[part.start : part.stop], wanted), part.start


def test_each_pass_can_have_its_own_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    attend = gpu_fused.attend

    def noting(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        launches.append(len(given[2]))
        return attend(*given, **named)

    monkeypatch.setattr(gpu_fused, "attend", noting)
    strategies: list[Strategy] = ["workspace", "fused", "reference", "fused"]
    queries = torch.randn(sum(LENGTHS[:4]), HEADS, HEAD_DIM)
    passes = make_passes(layer("qvg"), [RopeTransform(make_grid())], num_passes=4)
    found = batched_attention(queries, passes, workspace=workspace(), strategy=strategies)
    check(queries, passes, found, 2e-5)
    chosen = [part for part, name in zip(passes, strategies, strict=True) if name == "fused"]
    assert launches == [sum(bool(part.segments[0].num_tokens) for part in chosen)]


def test_no_pass() -> None:
    nothing = torch.empty(0, HEADS, HEAD_DIM)
    assert batched_attention(nothing, [], workspace=workspace(), strategy="fused").shape[0] == 0


def test_passes_have_to_take_all_queries() -> None:
    queries = torch.randn(5, HEADS, HEAD_DIM)
    part = AttentionPass(start=0, stop=4, segments=())
    with pytest.raises(AssertionError, match="5"):
        batched_attention(queries, [part], workspace=workspace())


def test_ranges_in_which_nothing_was_seen() -> None:
    parts, part_lse = torch.zeros(2, 1, 3, 64), torch.full((2, 1, 3), -torch.inf)
    parts[1, 0, 1], part_lse[1, 0, 1] = 2.0, 0.5
    out, lse = torch.full((1, 3, 64), torch.nan), torch.full((1, 3), torch.nan)
    gpu_merge.merge_ranges(parts, part_lse, out, lse)
    assert torch.equal(lse, torch.tensor([[-torch.inf, 0.5, -torch.inf]]))
    assert torch.equal(out[0, :, 0], torch.tensor([0.0, 2.0, 0.0]))
