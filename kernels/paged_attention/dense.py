"""Dense attention over a decoded piece, and the merge of pieces by log-sum-exp."""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qvg_engine.kernels.paged_attention import reference


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: float,
    *,
    needs_lse: bool,
) -> tuple[Tensor, Tensor]:
    """Softmax attention by the fastest dense kernel there is.

    Args:
        queries: [heads, queries, head_dim].
        keys, values: [heads, tokens, head_dim], at least one token.
        bias: fp32 [tokens], added to every query's scores, or None.
        needs_lse: whether the log-sum-exp will be used; it is not defined otherwise.

    Returns the output [heads, queries, head_dim] and the log-sum-exp, fp32 [heads, queries].
    """
    mask = None if bias is None else bias[None, None, None]
    batch = queries[None], keys[None], values[None]
    if queries.device.type == "cpu":
        # What SDPA runs on the CPU, asked for directly because it also knows the log-sum-exp.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *batch, attn_mask=mask, scale=scale
        )
        return out[0], lse[0]
    if needs_lse:
        return reference.attend(queries, keys, values, bias, scale)
    mask = None if mask is None else mask.to(queries.dtype)
    out = scaled_dot_product_attention(*batch, attn_mask=mask, scale=scale)[0]
    return out, out.new_empty(out.shape[:2], dtype=torch.float32)


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The attention over two disjoint sets of tokens, from (output, log-sum-exp) over each.

    Outputs [heads, queries, head_dim], log-sum-exps fp32 [heads, queries]; the result is fp32. Over
    no tokens the log-sum-exp is -inf.
    """
    lse = torch.logaddexp(first[1], second[1])
    # Where both are -inf any finite base will do: both weights are then exp(-inf) = 0.
    base = lse.masked_fill(lse == -math.inf, 0.0)
    out = sum(
        (part_lse - base).exp().unsqueeze(-1) * part.float() for part, part_lse in (first, second)
    )
    assert isinstance(out, Tensor)
    return out, lse
