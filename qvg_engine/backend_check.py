"""Whether the attention that was asked for can be had."""

from collections.abc import Sequence

import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.device import device_of
from qvg_engine.kernels.gpu import has_triton, runs_triton
from qvg_engine.kernels.paged_attention import LayerPages, Strategy
from qvg_engine.kernels.paged_attention.eight_bit import HEAD_DIMS


def check_backend(backend: Strategy, layers: Sequence[LayerPages], *, device: torch.device) -> None:
    """Raises `ConfigError` if "fused" was asked for and cannot be had for these pages."""
    if backend != "fused":
        return
    reason = why_not_fused(layers, device=device)
    if reason is not None:
        raise ConfigError(
            f"attention_backend is 'fused', which cannot be had: {reason}; use 'auto' or "
            "'workspace'"
        )


def why_not_fused(layers: Sequence[LayerPages], *, device: torch.device) -> str | None:
    """Why "fused" cannot be had for these pages on this device; None if it can.

    The pages themselves may be elsewhere, also on the "meta" device.
    """
    if not runs_triton(device):
        return f"it needs a CUDA device, and this is {device.type!r}"
    if not has_triton():
        return "it needs Triton: pip install 'qvg-engine[gpu]'"
    from qvg_engine.kernels.paged_attention import gpu_fused

    architecture = device_of(device).architecture
    for number, pages in enumerate(layers):
        reason = gpu_fused.refusal(pages, architecture)
        if reason is not None:
            return reason if len(layers) == 1 else f"in layer {number} {reason}"
    return None


def check_eight_bit(head_dim: int, device: torch.device) -> None:
    """Raises `ConfigError` if "eight-bit" was asked for and cannot be had."""
    asked = "attention_backend is 'eight-bit'"
    if head_dim not in HEAD_DIMS:
        offered = ", ".join(map(str, HEAD_DIMS))
        raise ConfigError(
            f"{asked}, which takes heads of {offered} channels, not of {head_dim}: use 'workspace'"
        )
    if runs_triton(device) and not has_triton():
        raise ConfigError(f"{asked}, which needs Triton on a GPU: pip install 'qvg-engine[gpu]'")
