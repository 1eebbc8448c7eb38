"""Runs every kernel once on small random pages and compares it with plain torch."""

import msgspec
import numpy as np
import torch
from torch import Tensor

from qvg_engine.backend_check import check_backend
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookAction, CodebookPolicy, SpanPlan
from qvg_engine.block_manager.format import FORMATS, CacheGeometry, LayerFormats, get_format
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.errors import one_line
from qvg_engine.kernels.paged_attention import (
    EightBitWorkspace,
    LayerPages,
    PagedSegment,
    PageRuns,
    RopeTransform,
    Strategy,
    Workspace,
    paged_attention,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables

_NUM_PAGES, _NUM_HEADS, _PAGE_SIZE, _HEAD_DIM = 5, 2, 64, 128
_NUM_QUERIES = 64
_NUM_CENTROIDS = 8
_TOLERANCE = 1e-4
_EIGHT_BIT_TOLERANCE = 0.05
"""What 8 bits round away of rows around 0 of a magnitude of about 1."""


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
    ways: list[tuple[str, Strategy]] = [("cpu", "workspace")]
    if torch.cuda.is_available():
        ways += [("cuda", "workspace"), ("cuda", "fused"), ("cuda", "eight-bit")]
    return [
        _check(device, format_name, strategy)
        for device, strategy in ways
        for format_name in FORMATS
        if strategy != "fused" or get_format(format_name).codec is not None
    ]


def _check(device: str, format_name: str, strategy: Strategy) -> KernelCheck:
    error = None
    try:
        distance = _distance_from_reference(device, format_name, strategy)
        if not distance <= (_EIGHT_BIT_TOLERANCE if strategy == "eight-bit" else _TOLERANCE):
            error = f"it differs from plain torch by {distance:.1e}"
    except Exception as failure:  # A kernel that cannot be compiled may raise anything.
        error = one_line(failure)
    return KernelCheck(
        name=f"{strategy} attention over {format_name} pages, with rotation",
        device=device,
        error=error,
    )


def _distance_from_reference(device: str, format_name: str, strategy: Strategy) -> float:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    shape = (_NUM_PAGES * _PAGE_SIZE, _NUM_HEADS, _HEAD_DIM)
    pages = _make_pages(device, format_name, keys=draw(*shape), values=draw(*shape))
    check_backend(strategy, [pages], device=torch.device(device))
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
    workspace: Workspace | EightBitWorkspace
    if strategy == "eight-bit":
        workspace = EightBitWorkspace(
            num_heads=_NUM_HEADS, head_dim=_HEAD_DIM, max_tokens=num_tokens, device=device
        )
    else:
        workspace = Workspace(
            num_heads=_NUM_HEADS,
            head_dim=_HEAD_DIM,
            max_tokens=num_tokens,
            device=device,
            dtype=torch.float32,
        )
    ways: tuple[Strategy, Strategy] = (strategy, "reference")
    ours, reference = (
        paged_attention(
            queries,
            [PagedSegment(pages, columns)],
            workspace=workspace,
            transform=RopeTransform(grid),
            query_positions=np.arange(_NUM_QUERIES) + num_tokens,
            strategy=way,
        )
        for way in ways
    )
    return float((ours - reference).abs().max())


def _make_pages(device: str, format_name: str, *, keys: Tensor, values: Tensor) -> LayerPages:
    """Pages of a format that hold these rows, with codebooks where it has any."""
    page_format = get_format(format_name)
    layout = CacheLayout(
        geometry=CacheGeometry(num_layers=1, num_kv_heads=_NUM_HEADS, head_dim=_HEAD_DIM),
        page_size=_PAGE_SIZE,
        formats=(LayerFormats(keys=page_format, values=page_format),),
        compute_itemsize=4,
        codebook_overhead=16.0,
        max_live_codebooks=1,
    )
    num_rows = page_format.codebook_rows(_NUM_CENTROIDS)
    store = PageStore(
        layout,
        num_pages=_NUM_PAGES,
        device=device,
        dtype=torch.float32,
        row_table=np.arange(num_rows, dtype=np.int32)[None] if num_rows else None,
        policy=CodebookPolicy(kmeans_iterations=2),
    )
    books = layout.num_books
    span = SpanPlan(
        np.full(books, CodebookAction.FIT, np.int8),
        np.zeros(books, np.int32),
        np.full(books, -1, np.int32),
    )
    store.write(0, np.arange(_NUM_PAGES, dtype=np.int32), keys=keys, values=values, span=span)
    return store.layer(0)
