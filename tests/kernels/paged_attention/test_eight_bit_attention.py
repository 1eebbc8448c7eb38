"""The strategy "eight-bit" against exact attention over what its pages hold."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels.paged_attention import (
    DenseSegment,
    EightBitWorkspace,
    IdentityTransform,
    LayerPages,
    PagedSegment,
    ReadTransform,
    Segment,
    eight_bit_attention,
    paged_attention_with_lse,
)
from tests.kernels.paged_attention.eight_bit_pages import FORMATS, RUNS, make_pages, nan_workspace
from tests.kernels.paged_attention.test_attention import (
    make_transform,
    make_workspace,
    relative_error,
)
from tests.kernels.paged_attention.test_transform import FrameMatrices

NUM_QUERIES, NUM_OWN = 37, 13
# Weights and values in E4M3 on rows that are random: what 8 bits add, measured 0.02 to 0.03.
TOLERANCE, LSE_TOLERANCE = 0.045, 0.05


def make_segments(name: str, *, num_heads: int, head_dim: int, weighted: bool) -> list[Segment]:
    layer = LayerPages(
        keys=make_pages(name, num_heads=num_heads, head_dim=head_dim, is_key=True),
        values=make_pages(name, num_heads=num_heads, head_dim=head_dim, is_key=False),
    )
    keys, values = torch.randn(2, NUM_OWN, num_heads, head_dim)
    own = DenseSegment(
        keys=keys,
        values=values,
        positions=np.arange(500, 500 + NUM_OWN),
        log_weights=2 * torch.rand(NUM_OWN) if weighted else None,
    )
    return [PagedSegment(layer, RUNS), own]


def both(
    queries: Tensor,
    segments: list[Segment],
    transform: ReadTransform,
    workspace: EightBitWorkspace,
) -> tuple[Any, Any]:
    shared: dict[str, Any] = {
        "transform": transform,
        "query_positions": np.arange(500, 500 + len(queries)),
    }
    num_heads = workspace.keys.shape[0]
    return (
        paged_attention_with_lse(
            queries, segments, workspace=workspace, strategy="eight-bit", **shared
        ),
        paged_attention_with_lse(
            queries,
            segments,
            workspace=make_workspace(queries, num_heads=num_heads),
            strategy="reference",
            **shared,
        ),
    )


@pytest.mark.parametrize("max_tokens", [512, 96])
@pytest.mark.parametrize("name", FORMATS)
def test_pages_and_the_own_chunk(name: str, max_tokens: int) -> None:
    segments = make_segments(name, num_heads=3, head_dim=64, weighted=max_tokens == 96)
    workspace = nan_workspace(num_heads=3, head_dim=64, max_tokens=max_tokens)
    queries = torch.randn(NUM_QUERIES, 3, 64) / 4
    out, expected = both(queries, segments, make_transform(64), workspace)
    assert 0 < relative_error(out.out, expected.out) < TOLERANCE
    assert (out.lse - expected.lse).abs().amax() < LSE_TOLERANCE
    assert out.out.dtype == queries.dtype
    assert out.out.is_contiguous()


@pytest.mark.parametrize("kind", ["identity", "matrices"])
@pytest.mark.parametrize("max_tokens", [512, 96])
def test_other_transforms(kind: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bit_attention, "_BLOCK", 50)
    transform: ReadTransform = IdentityTransform()
    if kind == "matrices":
        matrices = torch.eye(4) + 0.2 * torch.randn(14, 4, 4)
        transform = FrameMatrices(matrices.double(), tokens_per_frame=40)
    segments = make_segments("q4", num_heads=2, head_dim=64, weighted=False)
    workspace = nan_workspace(num_heads=2, head_dim=64, max_tokens=max_tokens)
    queries = torch.randn(NUM_QUERIES, 2, 64) / 4
    out, expected = both(queries, segments, transform, workspace)
    assert 0 < relative_error(out.out, expected.out) < TOLERANCE


def test_heads_that_share_keys() -> None:
    segments = make_segments("q2", num_heads=1, head_dim=128, weighted=True)
    workspace = nan_workspace(num_heads=1, head_dim=128, max_tokens=512)
    queries = torch.randn(NUM_QUERIES, 3, 128) / 4
    out, expected = both(queries, segments, make_transform(128), workspace)
    assert 0 < relative_error(out.out, expected.out) < TOLERANCE
    assert (out.lse - expected.lse).abs().amax() < LSE_TOLERANCE


def test_what_is_all_dense_is_not_rounded() -> None:
    own, more = (
        make_segments("q2", num_heads=2, head_dim=64, weighted=weighted)[1]
        for weighted in (True, False)
    )
    workspace = nan_workspace(num_heads=2, head_dim=64, max_tokens=16)
    queries = torch.randn(NUM_QUERIES, 2, 64)
    for segments in ([own], [own, more], [more]):
        out, expected = both(queries, list(segments), make_transform(64), workspace)
        assert relative_error(out.out, expected.out) < 1e-6
        torch.testing.assert_close(out.lse, expected.lse, rtol=0, atol=1e-5)
    assert workspace.bias.isnan().all(), "nothing was written"


def test_nothing_seen_is_zero() -> None:
    workspace = nan_workspace(num_heads=2, head_dim=64, max_tokens=16)
    out, _ = both(torch.randn(3, 2, 64), [], make_transform(64), workspace)
    assert (out.out == 0).all()
    assert (out.lse == -torch.inf).all()


def test_a_piece_has_scales_of_its_own() -> None:
    """What a piece before needed does not coarsen the next."""
    segments = make_segments("bfloat16", num_heads=1, head_dim=64, weighted=False)
    workspace = nan_workspace(num_heads=1, head_dim=64, max_tokens=512)
    large = DenseSegment(keys=torch.zeros(4, 1, 64), values=torch.full((4, 1, 64), 1e8))
    eight_bit_attention.fill(workspace, [*segments, large], IdentityTransform())
    assert workspace.value_scales.amin() > 1e5
    eight_bit_attention.fill(workspace, segments, IdentityTransform())
    assert workspace.value_scales.amax() < 1
