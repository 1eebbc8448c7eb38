"""Attention of one pass's queries over segments of pages and dense tensors."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.paged_attention import (
    cpu_attention,
    dense,
    eight_bit_attention,
    reference,
)
from qvg_engine.kernels.paged_attention.decode import decode, place
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace
from qvg_engine.kernels.paged_attention.passes import AttentionPass, check_passes, close_up
from qvg_engine.kernels.paged_attention.segments import (
    DenseSegment,
    PagedSegment,
    Segment,
    pack,
    transform_rows,
)
from qvg_engine.kernels.paged_attention.transform import IdentityTransform, ReadTransform
from qvg_engine.kernels.paged_attention.workspace import Workspace

Strategy = Literal["workspace", "fused", "eight-bit", "reference"]


class AttentionResult(NamedTuple):
    """out: [queries, heads, head_dim]; lse: fp32 [heads, queries], -inf where nothing was seen."""

    out: Tensor
    lse: Tensor


def paged_attention(
    queries: Tensor,
    segments: Sequence[Segment],
    *,
    workspace: Workspace | EightBitWorkspace,
    transform: ReadTransform | None = None,
    query_positions: NDArray[np.int64] | None = None,
    scale: float | None = None,
    strategy: Strategy = "workspace",
) -> Tensor:
    """Softmax attention of `queries` over all tokens of `segments`, without a mask.

    Args:
        queries: [tokens, heads, head_dim]; heads may be a multiple of the segments' heads (GQA).
        segments: runs of tokens in pages or dense tensors, in any order, of any length, also none.
        workspace: where the strategy decodes to, an `EightBitWorkspace` for "eight-bit"; used only
            during the call.
        transform: applied to queries, keys, values and output; the identity by default.
        query_positions: the queries' token numbers; needed with a transform.
        scale: of the scores; 1 / sqrt(head_dim) by default.
        strategy: "workspace" decodes into the workspace and runs dense attention, in pieces merged
            by log-sum-exp if the tokens do not fit at once; "fused" decodes pages in the tiles that
            attention multiplies with, see `gpu_fused.supports`, and attends to what is dense as
            "workspace" does; "eight-bit" decodes pages to 8 bits and attends to those, also on the
            CPU, see `eight_bit.py`, but reads what is all dense as it is; "reference" gathers all
            and works in fp32.

    Returns [tokens, heads, head_dim] in the dtype of `queries`; zeros if `segments` hold no token.
    """
    whole = _whole_pass(queries, segments, transform, query_positions)
    return _attend_one(queries, whole, workspace, scale, strategy, needs_lse=False).out


def paged_attention_with_lse(
    queries: Tensor,
    segments: Sequence[Segment],
    *,
    workspace: Workspace | EightBitWorkspace,
    transform: ReadTransform | None = None,
    query_positions: NDArray[np.int64] | None = None,
    scale: float | None = None,
    strategy: Strategy = "workspace",
) -> AttentionResult:
    """`paged_attention` with the log-sum-exp of the scores."""
    whole = _whole_pass(queries, segments, transform, query_positions)
    return _attend_one(queries, whole, workspace, scale, strategy, needs_lse=True)


def batched_attention(
    queries: Tensor,
    passes: Sequence[AttentionPass],
    *,
    workspace: Workspace | EightBitWorkspace,
    scale: float | None = None,
    strategy: Strategy | Sequence[Strategy] = "workspace",
    together: bool = True,
) -> Tensor:
    """`paged_attention` of many passes, each over its own segments.

    Args:
        queries: [tokens, heads, head_dim], those of all passes.
        passes: ranges of them, in order, all of them together; of different lengths.
        workspace, scale: as for one pass.
        strategy: of all passes, or one for each. The pages of all that are "fused" and rotated
            alike are read in one launch; the others go pass by pass.
        together: False makes "fused" go pass by pass too, so that no bit of a pass depends on the
            others.

    Returns [tokens, heads, head_dim] in the dtype of `queries`.
    """
    check_passes(passes, queries.shape[0])
    names = [strategy] * len(passes) if isinstance(strategy, str) else strategy
    alike = [part for part, name in zip(passes, names, strict=True) if name == "fused" and together]
    if alike and len(alike) == len(passes):
        return _attend_fused(queries, passes, workspace, scale).out
    out = torch.empty_like(queries)
    if alike:
        rows = torch.cat([queries[part.start : part.stop] for part in alike])
        moved = close_up(alike)
        found = _attend_fused(rows, moved, workspace, scale).out
        for part, there in zip(alike, moved, strict=True):
            out[part.start : part.stop] = found[there.start : there.stop]
    for part, name in zip(passes, names, strict=True):
        if name == "fused" and together:
            continue
        out[part.start : part.stop] = _attend_one(
            queries[part.start : part.stop],
            part.alone(),
            workspace,
            scale,
            name,
            needs_lse=False,
        ).out
    return out


def _whole_pass(
    queries: Tensor,
    segments: Sequence[Segment],
    transform: ReadTransform | None,
    positions: NDArray[np.int64] | None,
) -> AttentionPass:
    return AttentionPass(
        start=0,
        stop=queries.shape[0],
        segments=segments,
        transform=IdentityTransform() if transform is None else transform,
        positions=positions,
    )


def _attend_one(
    queries: Tensor,
    given: AttentionPass,
    workspace: Workspace | EightBitWorkspace,
    scale: float | None,
    strategy: Strategy,
    *,
    needs_lse: bool,
) -> AttentionResult:
    if strategy == "fused":
        return _attend_fused(queries, [given], workspace, scale)
    scale = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    transform, query_positions = given.transform, given.query_positions
    turned = transform.queries(queries, query_positions)
    segments = [segment for segment in given.segments if segment.num_tokens]
    folded = _fold_heads(turned, workspace.keys.shape[0])
    if not segments:
        out = torch.zeros_like(folded)
        lse = folded.new_full(folded.shape[:2], -math.inf, dtype=torch.float32)
    elif strategy == "eight-bit":
        assert isinstance(workspace, EightBitWorkspace), "eight-bit needs an EightBitWorkspace"
        out, lse = eight_bit_attention.attend(
            folded, segments, workspace, transform, scale, needs_lse=needs_lse
        )
    elif strategy == "reference":
        out, lse = reference.attend(folded, *_gather_all(segments, transform), scale)
    else:
        assert isinstance(workspace, Workspace), workspace
        out, lse = _attend_in_workspace(folded, segments, workspace, transform, scale, needs_lse)
    out = _unfold_heads(out.to(queries.dtype), queries.shape)
    return AttentionResult(
        transform.output(out, query_positions), lse.reshape(queries.shape[1], queries.shape[0])
    )


def _fold_heads(queries: Tensor, num_kv_heads: int) -> Tensor:
    """[tokens, heads, head_dim] to [KV heads, queries that share a KV head, head_dim]."""
    num_tokens, num_heads, head_dim = queries.shape
    assert num_heads % num_kv_heads == 0, (num_heads, num_kv_heads)
    group = num_heads // num_kv_heads
    return queries.transpose(0, 1).reshape(num_kv_heads, group * num_tokens, head_dim)


def _unfold_heads(out: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_fold_heads`: back to [tokens, heads, head_dim], contiguous."""
    num_tokens, num_heads, head_dim = shape
    return out.reshape(num_heads, num_tokens, head_dim).transpose(0, 1).contiguous()


def _attend_in_workspace(
    queries: Tensor,
    segments: Sequence[Segment],
    workspace: Workspace,
    transform: ReadTransform,
    scale: float,
    needs_lse: bool,
) -> tuple[Tensor, Tensor]:
    pieces = list(pack(segments, workspace.max_tokens))
    needs_lse = needs_lse or len(pieces) > 1
    has_codes = any(
        isinstance(s, PagedSegment) and isinstance(s.pages.keys, CodedPages) for s in segments
    )
    merged: tuple[Tensor, Tensor] | None = None
    for piece in pieces:
        num_tokens = _fill(workspace, piece, transform)
        weighted = any(isinstance(s, DenseSegment) and s.log_weights is not None for s in piece)
        bias = workspace.bias[:num_tokens] if weighted else None
        keys, values = workspace.keys, workspace.values
        # Pages that hold rows as they are get torch's kernel, for what a plain loop computes, bit
        # by bit: in bf16 pages any other rounding of fp32 can be seen again.
        if has_codes and cpu_attention.supports(queries, keys):
            part = cpu_attention.attend(queries, keys, values, num_tokens, bias, scale)
        else:
            keys, values = keys[:, :num_tokens], values[:, :num_tokens]
            part = dense.attend(queries, keys, values, bias, scale, needs_lse=needs_lse)
        merged = part if merged is None else dense.merge(merged, part)
    assert merged is not None
    return merged


def _attend_fused(
    queries: Tensor,
    passes: Sequence[AttentionPass],
    workspace: Workspace | EightBitWorkspace,
    scale: float | None,
) -> AttentionResult:
    from qvg_engine.kernels.paged_attention import fused

    assert isinstance(workspace, Workspace), workspace
    scale = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    num_tokens, num_heads, head_dim = queries.shape
    folded = _fold_heads(fused.rotate_queries(queries, passes), workspace.keys.shape[0])

    def attend_dense(
        rows: Tensor, segments: Sequence[DenseSegment], transform: ReadTransform
    ) -> tuple[Tensor, Tensor]:
        return _attend_in_workspace(rows, segments, workspace, transform, scale, needs_lse=True)

    out, lse = fused.attend(
        folded.reshape(len(folded), -1, num_tokens, head_dim),
        passes,
        scale=scale,
        attend_dense=attend_dense,
    )
    out = _unfold_heads(out.to(queries.dtype), queries.shape)
    return AttentionResult(out, lse.reshape(num_heads, num_tokens))


def _fill(workspace: Workspace, piece: Sequence[Segment], transform: ReadTransform) -> int:
    """Write K, V and bias of a piece's tokens to the workspace; returns how many there are."""
    start = 0
    for segment in piece:
        stop = start + segment.num_tokens
        bias = workspace.bias[start:stop]
        if isinstance(segment, PagedSegment):
            _fill_paged(workspace, segment, start, transform)
            bias.zero_()
        else:
            _fill_dense(workspace, segment, start, transform)
            bias.copy_(segment.log_weights) if segment.log_weights is not None else bias.zero_()
        start = stop
    return start


def _fill_paged(
    workspace: Workspace, segment: PagedSegment, start: int, transform: ReadTransform
) -> None:
    runs = segment.runs
    decode(segment.pages.keys, runs, workspace.keys, start=start, rope=transform.rope)
    decode(segment.pages.values, runs, workspace.values, start=start, rope=None)
    if transform.rope is not None:
        return
    positions = runs.slots()[2]
    for buffer, function in (
        (workspace.keys, transform.keys),
        (workspace.values, transform.values),
    ):
        rows = buffer[:, start : start + segment.num_tokens].transpose(0, 1)
        transformed = function(rows, positions)
        if transformed is not rows:
            rows.copy_(transformed)


def _fill_dense(
    workspace: Workspace, segment: DenseSegment, start: int, transform: ReadTransform
) -> None:
    rope = transform.rope if segment.positions is not None else None
    keys, values = segment.keys, segment.values
    if transform.rope is None:
        keys, values = transform_rows(segment, transform)
    place(keys, segment.positions, workspace.keys, start=start, rope=rope)
    place(values, None, workspace.values, start=start, rope=None)


def _gather_all(
    segments: Sequence[Segment], transform: ReadTransform
) -> tuple[Tensor, Tensor, Tensor]:
    """K and V of all tokens, fp32 [heads, tokens, head_dim], and the bias, fp32 [tokens]."""
    keys, values, biases = [], [], []
    for segment in segments:
        if isinstance(segment, PagedSegment):
            segment = DenseSegment(
                keys=reference.gather(segment.pages.keys, segment.runs).float(),
                values=reference.gather(segment.pages.values, segment.runs).float(),
                positions=segment.runs.slots()[2],
            )
        key, value = transform_rows(segment, transform)
        keys.append(key.float())
        values.append(value.float())
        weights = segment.log_weights
        biases.append(key.new_zeros(key.shape[0]).float() if weights is None else weights.float())
    return (
        torch.cat(keys).transpose(0, 1),
        torch.cat(values).transpose(0, 1),
        torch.cat(biases),
    )
