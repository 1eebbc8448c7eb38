"""The fused attention of a batch: one launch over the pages of all passes, then what is dense."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import dense, gpu_fused
from qvg_engine.kernels.paged_attention.pages import LayerPages
from qvg_engine.kernels.paged_attention.passes import AttentionPass
from qvg_engine.kernels.paged_attention.segments import DenseSegment, PagedSegment
from qvg_engine.kernels.paged_attention.transform import ReadTransform, rotates_only
from qvg_engine.kernels.rope import RopeGrid

Part = tuple[Tensor, Tensor]
"""Output and log-sum-exp over some of the tokens, as `dense.merge` takes them."""

AttendDense = Callable[[Tensor, Sequence[DenseSegment], ReadTransform], Part]


@dataclass(frozen=True, slots=True)
class _Launch:
    """Passes over the same pages with the same rotation: the runs of each that has any."""

    pages: LayerPages
    rope: RopeGrid | None
    runs: list[tuple[AttentionPass, PageRuns]]


def rotate_queries(queries: Tensor, passes: Sequence[AttentionPass]) -> Tensor:
    """The queries [tokens, heads, head_dim] of all passes, neighbours that turn alike at once."""
    parts = []
    for _, group in groupby(passes, key=lambda part: part.transform.rope):
        together = list(group)
        transform = together[0].transform
        assert rotates_only(transform), transform
        positions = np.concatenate([part.query_positions for part in together])
        rows = queries[together[0].start : together[-1].stop]
        parts.append(transform.queries(rows, positions))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend(
    queries: Tensor,
    passes: Sequence[AttentionPass],
    *,
    scale: float,
    attend_dense: AttendDense,
) -> Part:
    """Attention of all passes.

    Args:
        queries: [KV heads, queries that share one, tokens], each of head_dim: transformed.
        passes: ranges of the tokens; their pages are such that `gpu_fused.supports` takes.
        scale: of the scores.
        attend_dense: attention of one pass's queries, [KV heads, queries, head_dim], to what is
            dense in it.

    Returns the output [KV heads, queries, head_dim] and the log-sum-exp [KV heads, queries], heads
    before tokens as they were given; 0 and -inf where nothing was seen.
    """
    num_heads, group, num_tokens, head_dim = queries.shape
    folded = queries.reshape(num_heads, group * num_tokens, head_dim).contiguous()
    parts = [_attend_pages(folded, launch, group, scale) for launch in _launches(passes)]
    dense_part = _attend_dense(queries, passes, attend_dense)
    if dense_part is not None:
        parts.append(dense_part)
    if not parts:
        return _nothing_seen(folded, torch.float32)
    merged = parts[0]
    for part in parts[1:]:
        merged = dense.merge(merged, part)
    return merged


def _launches(passes: Sequence[AttentionPass]) -> list[_Launch]:
    found: dict[tuple[int, int, RopeGrid | None], _Launch] = {}
    for part in passes:
        rope = part.transform.rope
        of_pages: dict[tuple[int, int], list[PagedSegment]] = {}
        for segment in part.segments:
            if isinstance(segment, PagedSegment) and segment.num_tokens and part.num_queries:
                key = (id(segment.pages.keys), id(segment.pages.values))
                of_pages.setdefault(key, []).append(segment)
        for (keys, values), segments in of_pages.items():
            pages = segments[0].pages
            assert gpu_fused.supports(pages), pages
            launch = found.setdefault((keys, values, rope), _Launch(pages, rope, []))
            launch.runs.append((part, PageRuns.join([segment.runs for segment in segments])))
    return list(found.values())


def _attend_pages(folded: Tensor, launch: _Launch, group: int, scale: float) -> Part:
    num_tokens = folded.shape[1] // group
    ranges = [
        gpu_fused.PagedPass(first + part.start, first + part.stop, runs)
        for part, runs in launch.runs
        for first in _first_tokens(part, group, num_tokens)
    ]
    if len(launch.runs) == 1 and launch.runs[0][0].num_queries == num_tokens:
        # Queries that share a head can share a tile.
        ranges = [gpu_fused.PagedPass(0, group * num_tokens, launch.runs[0][1])]
    return gpu_fused.attend(
        folded,
        launch.pages,
        ranges,
        rope=launch.rope,
        scale=scale,
        num_programs=gpu_fused.num_programs(folded.device),
    )


def _first_tokens(part: AttentionPass, group: int, num_tokens: int) -> range:
    return range(0, group * num_tokens, num_tokens) if part.num_queries else range(0)


def _attend_dense(
    queries: Tensor, passes: Sequence[AttentionPass], attend_dense: AttendDense
) -> Part | None:
    """Pass by pass: each has tokens of its own."""
    num_heads, group, num_tokens, head_dim = queries.shape
    found: list[tuple[AttentionPass, Part]] = []
    for part in passes:
        segments = [s for s in part.segments if isinstance(s, DenseSegment) and s.num_tokens]
        if segments and part.num_queries:
            of_part = queries[:, :, part.start : part.stop].reshape(num_heads, -1, head_dim)
            found.append((part, attend_dense(of_part, segments, part.transform)))
    if not found:
        return None
    if len(found) == 1 and found[0][0].num_queries == num_tokens:
        return found[0][1]
    out, lse = _nothing_seen(queries.flatten(1, 2), found[0][1][0].dtype)
    for part, (some_out, some_lse) in found:
        rows = slice(part.start, part.stop)
        shape = (num_heads, group, part.num_queries)
        out.view(queries.shape)[:, :, rows] = some_out.reshape(*shape, head_dim)
        lse.view(queries.shape[:3])[:, :, rows] = some_lse.reshape(shape)
    return out, lse


def _nothing_seen(folded: Tensor, dtype: torch.dtype) -> Part:
    """What no token leaves of queries [heads, queries, head_dim]."""
    out = folded.new_zeros(folded.shape, dtype=dtype)
    return out, out.new_full(folded.shape[:2], -torch.inf, dtype=torch.float32)
