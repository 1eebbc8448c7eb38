"""The strategy "eight-bit": pages and dense rows packed into an 8-bit workspace, piece by piece."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import dense, eight_bit
from qvg_engine.kernels.paged_attention.decode import decode
from qvg_engine.kernels.paged_attention.decode_eight_bit import (
    bound_pages,
    decode_keys,
    decode_values,
)
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace
from qvg_engine.kernels.paged_attention.pages import Pages
from qvg_engine.kernels.paged_attention.segments import (
    DenseSegment,
    PagedSegment,
    Segment,
    pack,
    transform_rows,
)
from qvg_engine.kernels.paged_attention.transform import ReadTransform, rotates_only

_BLOCK = 2048
"""Tokens of pages that are decoded to fp32 at once, under a transform that is no rotation."""


def attend(
    queries: Tensor,
    segments: Sequence[Segment],
    workspace: EightBitWorkspace,
    transform: ReadTransform,
    scale: float,
    *,
    needs_lse: bool,
) -> tuple[Tensor, Tensor]:
    """Attention over at least one token; queries [heads, queries, head_dim], transformed.

    Where nothing lies in pages there is nothing to decode: text, and a chunk without a past, are
    attended to as they are, in their own dtype.

    Returns the output and the log-sum-exp, which is not defined unless `needs_lse`.
    """
    rows = [segment for segment in segments if isinstance(segment, DenseSegment)]
    if len(rows) == len(segments):
        return _attend_to_rows(queries, rows, transform, scale, needs_lse=needs_lse)
    merged: tuple[Tensor, Tensor] | None = None
    for piece in pack(segments, workspace.max_tokens):
        num_tokens = fill(workspace, piece, transform)
        weighted = any(isinstance(s, DenseSegment) and s.log_weights is not None for s in piece)
        bias = workspace.bias[:num_tokens] if weighted else None
        part = eight_bit.attend(queries, workspace, num_tokens, bias, scale)
        merged = part if merged is None else dense.merge(merged, part)
    assert merged is not None
    return merged


def fill(workspace: EightBitWorkspace, piece: Sequence[Segment], transform: ReadTransform) -> int:
    """Quantise K, V and the bias of a piece's tokens; returns how many there are.

    Pages are decoded straight to 8 bits, also rotated. Any other transform takes rows: pages are
    decoded to some thousand of them at a time, twice, because scales come before what they scale.
    """
    workspace.clear()
    # Dense rows are those of one chunk: transformed once.
    ready = [_transformed(s, transform) if isinstance(s, DenseSegment) else s for s in piece]
    straight = rotates_only(transform)
    for segment in ready:
        if isinstance(segment, PagedSegment) and straight:
            bound_pages(workspace, segment.pages.values, segment.runs)
            continue
        for _, values in _blocks(segment, transform):
            eight_bit.bound_values(workspace, values)
    start = 0
    for segment in ready:
        if isinstance(segment, PagedSegment) and straight:
            pages, runs = segment.pages, segment.runs
            decode_keys(workspace, pages.keys, runs, start=start, rope=transform.rope)
            decode_values(workspace, pages.values, runs, start=start)
        else:
            place = start
            for keys, values in _blocks(segment, transform):
                eight_bit.store(workspace, keys, values, start=place)
                place += keys.shape[1]
        bias = workspace.bias[start : start + segment.num_tokens]
        weights = segment.log_weights if isinstance(segment, DenseSegment) else None
        bias.copy_(weights) if weights is not None else bias.zero_()
        start += segment.num_tokens
    return start


def _transformed(segment: DenseSegment, transform: ReadTransform) -> DenseSegment:
    keys, values = transform_rows(segment, transform)
    return replace(segment, keys=keys, values=values, positions=None)


def _blocks(segment: Segment, transform: ReadTransform) -> Iterator[tuple[Tensor, Tensor]]:
    """K and V [heads, tokens, head_dim], transformed: of pages in fp32, of dense rows as given."""
    if isinstance(segment, DenseSegment):
        # The kernels take rows whose channels are contiguous.
        rows = (segment.keys, segment.values)
        keys, values = (x if x.stride(2) == 1 else x.contiguous() for x in rows)
        yield keys.transpose(0, 1), values.transpose(0, 1)
        return
    for begin in range(0, segment.num_tokens, _BLOCK):
        block = segment.cut(begin, min(begin + _BLOCK, segment.num_tokens))
        positions = block.runs.slots()[2]
        keys = transform.keys(_decoded(block.pages.keys, block.runs), positions)
        values = transform.values(_decoded(block.pages.values, block.runs), positions)
        yield keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()


def _decoded(pages: Pages, runs: PageRuns) -> Tensor:
    """fp32 [tokens, heads, head_dim]."""
    out = torch.empty((pages.num_heads, runs.num_tokens, pages.head_dim), device=pages.device)
    decode(pages, runs, out, start=0, rope=None)
    return out.transpose(0, 1)


def _attend_to_rows(
    queries: Tensor,
    segments: Sequence[DenseSegment],
    transform: ReadTransform,
    scale: float,
    *,
    needs_lse: bool,
) -> tuple[Tensor, Tensor]:
    rows = [transform_rows(segment, transform) for segment in segments]
    keys, values = (
        _joined([pair[part] for pair in rows]).to(queries.dtype).transpose(0, 1) for part in (0, 1)
    )
    bias = None
    if any(segment.log_weights is not None for segment in segments):
        bias = _joined([_log_weights(segment) for segment in segments])
    return dense.attend(queries, keys, values, bias, scale, needs_lse=needs_lse)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _log_weights(segment: DenseSegment) -> Tensor:
    if segment.log_weights is not None:
        return segment.log_weights.float()
    return torch.zeros(segment.num_tokens, device=segment.keys.device)
