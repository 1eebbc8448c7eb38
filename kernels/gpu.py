"""Where Triton kernels run, and how they are compiled for a device that is not there."""

import functools
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


def supports(x: Tensor) -> bool:
    """Whether Triton kernels take this tensor."""
    return x.device.type == "cuda" and has_triton()


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
