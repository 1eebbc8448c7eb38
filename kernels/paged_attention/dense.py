"""Dense attention over a decoded piece, and the merge of pieces by log-sum-exp."""

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from qvg_engine.kernels import gpu
from qvg_engine.kernels.device import device_of
from qvg_engine.kernels.paged_attention import reference
from qvg_engine.kernels.paged_attention.dense_backend import (
    DenseBackend,
    Job,
    dense_backend,
    installed_packages,
)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: float,
    *,
    needs_lse: bool,
    backend: DenseBackend | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention by the fastest dense kernel there is.

    Args:
        queries: [heads, queries, head_dim].
        keys, values: [heads, tokens, head_dim], at least one token.
        bias: fp32 [tokens], added to every query's scores, or None.
        needs_lse: whether the log-sum-exp will be used; it is not defined otherwise.
        backend: on a GPU, who computes it; see `dense_backend`, also for what it raises.

    Returns the output [heads, queries, head_dim] and the log-sum-exp, fp32 [heads, queries].
    """
    if gpu.runs_on_cpu(queries.device):
        # What SDPA runs on the CPU, asked for directly because it also knows the log-sum-exp.
        mask = None if bias is None else bias[None, None, None]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries[None], keys[None], values[None], attn_mask=mask, scale=scale
        )
        return out[0], lse[0]
    if queries.device.type == "cpu" and gpu.supports(queries):
        return _as_on_gpu(Given(queries, keys, values, bias, scale, needs_lse))
    if queries.device.type != "cuda":
        return reference.attend(queries, keys, values, bias, scale)
    job = Job(head_dim=queries.shape[-1], dtype=queries.dtype, biased=bias is not None)
    choice = dense_backend(
        device_of(queries.device), job, packages=installed_packages(), forced=backend
    )
    return CALLS[choice.backend](Given(queries, keys, values, bias, scale, needs_lse))


class Given(NamedTuple):
    """The arguments of `attend`, but for the backend."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None
    scale: float
    needs_lse: bool

    @property
    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as torch's operators take them: [1, heads, tokens, head_dim]."""
        return self.queries[None], self.keys[None], self.values[None]

    @property
    def tokens_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """As packages take them: [1, tokens, heads, head_dim]."""
        queries, keys, values = (x.transpose(1, 2) for x in self.batch)
        return queries, keys, values


Call = Callable[[Given], tuple[Tensor, Tensor]]


def _torch_flash(given: Given) -> tuple[Tensor, Tensor]:
    assert given.bias is None
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        *given.batch, 0.0, False, False, scale=given.scale
    )
    return out[0], lse[0]


def _cudnn(given: Given) -> tuple[Tensor, Tensor]:
    assert given.bias is None
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *given.batch, None, given.needs_lse, 0.0, False, False, scale=given.scale
    )
    out = out[0]
    return out, lse.reshape(out.shape[:2]) if given.needs_lse else _undefined(out)


def _torch_efficient(given: Given) -> tuple[Tensor, Tensor]:
    num_heads, num_queries, _ = given.queries.shape
    bias = given.bias
    mask = None
    if bias is not None:
        # The kernel loads 16 bytes of a row at a time.
        num_tokens = bias.shape[0]
        room = bias.new_zeros(-(-num_tokens // 16) * 16)
        room[:num_tokens] = bias
        mask = room[:num_tokens].expand(1, num_heads, num_queries, num_tokens)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        *given.batch, mask, given.needs_lse, 0.0, False, scale=given.scale
    )
    # Its rows are padded.
    return out[0], lse[0, :, :num_queries] if given.needs_lse else _undefined(out[0])


def _undefined(out: Tensor) -> Tensor:
    return out.new_empty(out.shape[:2], dtype=torch.float32)


def _flash_attn(given: Given, *, module: str = "flash_attn") -> tuple[Tensor, Tensor]:
    assert given.bias is None
    function = importlib.import_module(module).flash_attn_func
    # Some versions of FlashAttention 3 always return the log-sum-exp, and have no such argument.
    named = "return_attn_probs" in inspect.signature(function).parameters
    asked: dict[str, Any] = {"return_attn_probs": True} if named else {}
    out, lse, *_ = function(*given.tokens_first, softmax_scale=given.scale, **asked)
    return out[0].transpose(0, 1), lse[0]


def _flash_attn_3(given: Given) -> tuple[Tensor, Tensor]:
    return _flash_attn(given, module="flash_attn_interface")


def _xformers(given: Given) -> tuple[Tensor, Tensor]:
    assert given.bias is None
    module = importlib.import_module("xformers.ops")
    out, lse = module.memory_efficient_attention_forward_requires_grad(
        *given.tokens_first, scale=given.scale
    )
    # Some of its kernels pad the rows.
    return out[0].transpose(0, 1), lse[0, :, : given.queries.shape[1]]


def _triton(given: Given) -> tuple[Tensor, Tensor]:
    from qvg_engine.kernels.paged_attention import gpu_dense

    queries, keys, values, bias, scale, _ = given
    return gpu_dense.attend(queries, keys, values, keys.shape[1], bias, scale)


def _as_on_gpu(given: Given) -> tuple[Tensor, Tensor]:
    """Within `gpu.cpu_as_gpu`, by our own kernel: the others need a GPU."""
    from qvg_engine.kernels.paged_attention import gpu_dense

    return (_triton if gpu_dense.supports(given.queries, given.keys) else _reference)(given)


def _reference(given: Given) -> tuple[Tensor, Tensor]:
    return reference.attend(*given[:5])


CALLS: Final[dict[DenseBackend, Call]] = {
    "flash-attn-3": _flash_attn_3,
    "cudnn": _cudnn,
    "flash-attn": _flash_attn,
    "torch-flash": _torch_flash,
    "xformers": _xformers,
    "triton": _triton,
    "torch-efficient": _torch_efficient,
    "reference": _reference,
}
"""What computes it; `dense_backend` says which can."""


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The attention over two disjoint sets of tokens, from (output, log-sum-exp) over each.

    Outputs [heads, queries, head_dim], log-sum-exps fp32 [heads, queries]; the result is fp32. Over
    no tokens the log-sum-exp is -inf.
    """
    head_dim = first[0].shape[-1]
    if gpu.supports(first[0]) and head_dim & (head_dim - 1) == 0:
        from qvg_engine.kernels.paged_attention import gpu_merge

        return gpu_merge.merge(first, second)
    lse = torch.logaddexp(first[1], second[1])
    # Where both are -inf any finite base will do: both weights are then exp(-inf) = 0.
    base = lse.masked_fill(lse == -math.inf, 0.0)
    out = sum(
        (part_lse - base).exp().unsqueeze(-1) * part.float() for part, part_lse in (first, second)
    )
    assert isinstance(out, Tensor)
    return out, lse
