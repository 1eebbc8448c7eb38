"""Whether the attention that was asked for can be had."""

from collections.abc import Sequence

import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.paged_attention import LayerPages, Strategy
from qvg_engine.kernels.paged_attention.eight_bit import HEAD_DIMS


def check_backend(backend: Strategy, layers: Sequence[LayerPages], *, device: torch.device) -> None:
    """Raises `ConfigError` if "fused" or "eight-bit" cannot be had for these pages."""
    if backend == "eight-bit":
        _check_eight_bit(layers[0].keys.head_dim, device)
    if backend != "fused":
        return
    asked = "attention_backend is 'fused'"
    if device.type != "cuda":
        raise ConfigError(f"{asked}, which needs a CUDA device: use 'workspace' on {device.type}")
    if not has_triton():
        raise ConfigError(f"{asked}, which needs Triton: pip install 'qvg-engine[gpu]'")
    from qvg_engine.kernels.paged_attention import gpu_fused

    for number, pages in enumerate(layers):
        if not gpu_fused.supports(pages):
            raise ConfigError(
                f"{asked}, which layer {number} cannot have: it needs a coded kv_format (of two "
                "stages at most on sm_80), heads of 64 or 128 channels and a page_size that is a "
                "multiple of 32; use 'workspace'"
            )


def _check_eight_bit(head_dim: int, device: torch.device) -> None:
    asked = "attention_backend is 'eight-bit'"
    if head_dim not in HEAD_DIMS:
        offered = ", ".join(map(str, HEAD_DIMS))
        raise ConfigError(
            f"{asked}, which takes heads of {offered} channels, not of {head_dim}: use 'workspace'"
        )
    if device.type == "cuda" and not has_triton():
        raise ConfigError(f"{asked}, which needs Triton on a GPU: pip install 'qvg-engine[gpu]'")
