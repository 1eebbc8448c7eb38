"""Runs every kernel once on small random pages and compares it with plain torch."""

import msgspec
import numpy as np
import torch
from torch import Tensor

from qvg_engine.kernels.paged_attention import (
    LayerPages,
    PagedSegment,
    PageRuns,
    PlainPages,
    RopeTransform,
    Workspace,
    paged_attention,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables

_NUM_PAGES, _NUM_HEADS, _PAGE_SIZE, _HEAD_DIM = 5, 2, 64, 128
_NUM_QUERIES = 64
_TOLERANCE = 1e-4


class KernelCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How a kernel did on a device; `error` None if it runs and agrees with plain torch."""

    name: str
    device: str
    error: str | None

    @property
    def status(self) -> str:
        """One line for people."""
        return "runs, agrees with plain torch" if self.error is None else f"fails: {self.error}"


def check_kernels() -> list[KernelCheck]:
    """Try every kernel on the CPU and, if there is one, on the GPU."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        _check(device, page_dtype)
        for device in devices
        for page_dtype in (torch.float32, torch.bfloat16)
    ]


def _check(device: str, page_dtype: torch.dtype) -> KernelCheck:
    error = None
    try:
        distance = _distance_from_reference(device, page_dtype)
        if not distance <= _TOLERANCE:
            error = f"it differs from plain torch by {distance:.1e}"
    except Exception as failure:  # A kernel that cannot be compiled may raise anything.
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    format_name = "dense" if page_dtype == torch.float32 else "bf16"
    return KernelCheck(
        name=f"attention over {format_name} pages, with rotation", device=device, error=error
    )


def _distance_from_reference(device: str, page_dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    pages = LayerPages(
        *(
            PlainPages(draw(_NUM_PAGES, _NUM_HEADS, _PAGE_SIZE, _HEAD_DIM).to(page_dtype))
            for _ in range(2)
        )
    )
    queries = draw(_NUM_QUERIES, _NUM_HEADS, _HEAD_DIM)
    grid = RopeGrid(RopeTables(head_dim=_HEAD_DIM, device=device), height=8, width=8)
    # The pages out of order, the second one part full.
    columns = PageRuns(
        page_id=np.array([3, 0, 4]),
        first_token=np.array([0, 64, 104]),
        begin=np.array([0, 0, 10]),
        end=np.array([64, 40, 64]),
    )
    num_tokens = columns.num_tokens
    workspace = Workspace(
        num_heads=_NUM_HEADS,
        head_dim=_HEAD_DIM,
        max_tokens=num_tokens,
        device=device,
        dtype=torch.float32,
    )
    ours, reference = (
        paged_attention(
            queries,
            [PagedSegment(pages, columns)],
            workspace=workspace,
            transform=RopeTransform(grid),
            query_positions=np.arange(_NUM_QUERIES) + num_tokens,
            strategy=strategy,
        )
        for strategy in ("workspace", "reference")
    )
    return float((ours - reference).abs().max())
