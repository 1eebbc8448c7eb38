"""Attention over pages of codes: the workspace strategy against the reference."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec import (
    PRESETS,
    CodedPages,
    allocate_pages,
    consecutive_slots,
    encode_span,
    fit_codebook,
)
from qvg_engine.kernels.paged_attention import (
    DenseSegment,
    LayerPages,
    PagedSegment,
    Segment,
    paged_attention_with_lse,
)
from tests.kernels.paged_attention.conftest import visible_runs
from tests.kernels.paged_attention.test_attention import (
    TOLERANCES,
    make_transform,
    make_workspace,
    relative_error,
)


def coded(rows: Tensor, page_ids: NDArray[Any], name: str) -> CodedPages:
    """Rows in coded pages, with a codebook that was fitted to them."""
    spec = msgspec.structs.replace(PRESETS[name], centroids=16).for_head_dim(rows.shape[2])
    pages = allocate_pages(
        spec,
        num_pages=len(page_ids),
        num_heads=rows.shape[1],
        page_size=16,
        head_dim=rows.shape[2],
        row_table=consecutive_slots(spec, 1),
        device="cpu",
    )
    fit_codebook(
        pages,
        rows,
        slot=0,
        num_centroids=16,
        seed=0,
        warm_from=None,
        iterations=2,
        name="rows",
    )
    encode_span(pages, page_ids, rows, slot=0, name="rows")
    return pages


@pytest.mark.parametrize(
    ("page_format", "head_dim"),
    [("q4", 12), ("q2", 12), ("qvg", 12), ("q4", 64), ("q2", 64), ("q1", 64), ("qvg", 64)],
)
@pytest.mark.parametrize("room", [512, 100])
def test_coded_pages_and_the_own_chunk_are_attended_to_alike(
    page_format: str, head_dim: int, room: int
) -> None:
    page_ids = np.random.default_rng(0).permutation(19).astype(np.int32)
    keys, values = torch.randn(2, 313, 2, head_dim)
    own = DenseSegment(keys=keys[300:], values=values[300:], positions=np.arange(300, 313))
    layer = LayerPages(
        keys=coded(keys[:300], page_ids, page_format),
        values=coded(values[:300], page_ids, page_format),
    )
    past = PagedSegment(layer, visible_runs([(0, 50), (70, 299)], page_ids, 16))
    segments: list[Segment] = [past, own]
    queries = torch.randn(37, 2, head_dim)
    workspace = make_workspace(queries, max_tokens=room)
    out, log_sums = paged_attention_with_lse(
        queries,
        segments,
        workspace=workspace,
        transform=make_transform(head_dim),
        query_positions=np.arange(300, 337),
    )
    expected = paged_attention_with_lse(
        queries,
        segments,
        workspace=workspace,
        transform=make_transform(head_dim),
        query_positions=np.arange(300, 337),
        strategy="reference",
    )
    assert relative_error(out, expected.out) < TOLERANCES[torch.float32]
    assert relative_error(log_sums, expected.lse) < TOLERANCES[torch.float32]
