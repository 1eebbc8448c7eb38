"""Which kernels read and write plain pages."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels import gpu as triton_gpu
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import cpu, reference
from qvg_engine.kernels.paged_attention.pages import PlainPages
from qvg_engine.kernels.rope import RopeGrid


class PlainKernels(Protocol):
    """The functions of `encode.py` and `decode.py`, of one way to compute them."""

    def encode(self, pages: PlainPages, page_ids: NDArray[np.integer], rows: Tensor) -> None: ...
    def decode(
        self, pages: PlainPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
    ) -> None: ...
    def place(
        self,
        rows: Tensor,
        positions: NDArray[np.int64] | None,
        out: Tensor,
        *,
        start: int,
        rope: RopeGrid | None,
    ) -> None: ...


def kernels_for(*tensors: Tensor) -> PlainKernels:
    """The fastest ones that read and write these tensors, all on one device."""
    if cpu.supports(*tensors):
        return cpu
    if all(triton_gpu.supports(x) for x in tensors):
        from qvg_engine.kernels.paged_attention import gpu

        if gpu.supports(*tensors):
            return gpu
    return reference
