"""Quantising to an 8-bit workspace and attention over it in plain torch: slow, on any device."""

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from qvg_engine.kernels.codec.e4m3 import LARGEST, from_e4m3, to_e4m3

if TYPE_CHECKING:
    from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace

SMALLEST: Final = 2.0**-100
"""Rows and channels with no larger magnitude count as zeros: their inverse would overflow."""
_QUERY_BLOCK = 1024


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 rows [..., channels] as INT8, -127 to 127, and their scales, fp32 [...].

    Rounded to nearest even; a row of zeros has the scale 0, one that is not finite no finite one.
    """
    largest = x.abs().amax(-1)
    largest = torch.where(largest <= SMALLEST, 0.0, largest)
    # Not 127.0 / largest, which torch takes for a product with the reciprocal.
    inverse = torch.where(largest > 0, torch.full_like(largest, 127.0) / largest, 0.0)
    codes = (x * inverse[..., None]).round().nan_to_num(0.0)
    return codes.to(torch.int8), largest / 127.0


def bound_values(workspace: "EightBitWorkspace", values: Tensor) -> None:
    """See `eight_bit.bound_values`."""
    scales = values.float().abs().amax(1) / LARGEST
    torch.maximum(workspace.value_scales, scales, out=workspace.value_scales)


def store(workspace: "EightBitWorkspace", keys: Tensor, values: Tensor, *, start: int) -> None:
    """See `eight_bit.store`."""
    store_keys(workspace, keys, start=start)
    store_values(workspace, values, start=start)


def store_keys(workspace: "EightBitWorkspace", keys: Tensor, *, start: int) -> None:
    """K of `store`."""
    stop = start + keys.shape[1]
    codes, scales = quantise_rows(keys.float())
    workspace.keys[:, start:stop] = codes
    workspace.key_scales[:, start:stop] = scales


def store_values(workspace: "EightBitWorkspace", values: Tensor, *, start: int) -> None:
    """V of `store`."""
    stop = start + values.shape[1]
    scales = workspace.value_scales
    inverse = torch.where(scales <= SMALLEST, 0.0, 1.0 / scales)
    scaled = values.float() * inverse[:, None]
    narrowed = to_e4m3(scaled) if workspace.has_e4m3 else scaled.clamp(-LARGEST, LARGEST).half()
    workspace.values[:, :, start:stop] = narrowed.mT


def attend(
    queries: Tensor,
    workspace: "EightBitWorkspace",
    num_tokens: int,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `eight_bit.attend`."""
    keys = workspace.keys[:, :num_tokens].float()
    key_scales = workspace.key_scales[:, None, :num_tokens]
    values = workspace.values[:, :, :num_tokens].mT
    values = from_e4m3(values) if workspace.has_e4m3 else values.float()
    out = torch.empty_like(queries)
    lse = torch.empty(queries.shape[:2], device=queries.device)
    for begin in range(0, queries.shape[1], _QUERY_BLOCK):
        block = slice(begin, begin + _QUERY_BLOCK)
        codes, row_scales = quantise_rows(queries[:, block].float())
        scores = codes.float() @ keys.mT * key_scales * (row_scales[..., None] * scale)
        if bias is not None:
            scores = scores + bias[:num_tokens]
        weights = (scores - scores.amax(-1, keepdim=True)).exp() * LARGEST
        rounded = from_e4m3(to_e4m3(weights)) if workspace.has_e4m3 else weights.half().float()
        # Weights are rounded in the product alone, as the kernel does it.
        sums = rounded @ values / weights.sum(-1, keepdim=True) * workspace.value_scales[:, None]
        out[:, block] = sums.to(out.dtype)
        lse[:, block] = scores.logsumexp(-1)
    return out, lse
