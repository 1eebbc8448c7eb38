"""Where Triton kernels run, and how they are compiled for a device that is not there."""

import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Whether a multiplication and an addition become one: the default changes with Triton 3.10, and
# with it every last bit. Read when a kernel is compiled.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU.

    It is chosen when a kernel's module is imported, by TRITON_INTERPRET=1, and then takes tensors
    on the CPU. Its bf16 arithmetic is wrong: kernels compute in fp32 or fp16 there.
    """
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


_cpu_is_gpu: ContextVar[bool] = ContextVar("cpu_is_gpu", default=False)


@contextmanager
def cpu_as_gpu() -> Iterator[None]:
    """Within it, what is on the CPU is computed as on a GPU: by Triton's kernels, interpreted.

    To run whole programs through the kernels where there is no GPU. Rotary tables, and whatever
    else is made for a device once, are to be made within it too.
    """
    assert is_interpreted(), "set TRITON_INTERPRET=1 before the kernels are imported"
    token = _cpu_is_gpu.set(True)
    try:
        yield
    finally:
        _cpu_is_gpu.reset(token)


def runs_triton(device: torch.device) -> bool:
    """Whether tensors on this device are for Triton's kernels, if it is installed."""
    return device.type == "cuda" or (device.type == "cpu" and _cpu_is_gpu.get())


def runs_on_cpu(device: torch.device) -> bool:
    """Whether tensors on this device are for the CPU's kernels."""
    return device.type == "cpu" and not _cpu_is_gpu.get()


def supports(x: Tensor) -> bool:
    """Whether Triton kernels take this tensor."""
    return runs_triton(x.device) and has_triton()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kernel as it is compiled for a GPU: what an offline compilation needs to know.

    name: unique among all variants, such as "decode-q2-d128-bf16".
    kernel: a function of `triton.jit`.
    signature: Triton's type of each argument in order, such as "*u8", "*bf16", "i32", "fp32";
        "constexpr" for constants.
    constants: the values of those.
    aligned: arguments that are divisible by 16, as pointers to tensors and most strides are.
    num_warps, num_stages: as in a launch.
    fp_fusion: whether products may be added without being rounded, `enable_fp_fusion` of a launch.
    architectures: the only ones it is launched on, such as (80, 89); all if None.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 1
    fp_fusion: bool = True
    architectures: tuple[int, ...] | None = None

    def is_offered_on(self, architecture: int) -> bool:
        """Whether it is launched on devices of this architecture, such as 90."""
        return self.architectures is None or architecture in self.architectures
