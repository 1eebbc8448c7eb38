"""Whether the attention that was asked for can be had."""

from collections.abc import Sequence

import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.gpu import has_triton, runs_triton
from qvg_engine.kernels.paged_attention import LayerPages, Strategy


def check_backend(backend: Strategy, layers: Sequence[LayerPages], *, device: torch.device) -> None:
    """Raises `ConfigError` if "fused" was asked for and cannot be had for these pages."""
    if backend != "fused":
        return
    asked = "attention_backend is 'fused'"
    if not runs_triton(device):
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
