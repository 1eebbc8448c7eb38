"""A transform that is not RoPE: matrices a frame on Q, K, V and the output, as in ProPE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.paged_attention import (
    DenseSegment,
    IdentityTransform,
    RopeTransform,
    Strategy,
    Workspace,
    paged_attention,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables

MakeCache = Callable[..., Any]


@dataclass(frozen=True)
class FrameMatrices:
    """q <- P^T q, k <- P^-1 k, v <- P^-1 v, out <- P out on runs of 4 channels; P by frame."""

    matrices: Tensor
    tokens_per_frame: int

    @property
    def rope(self) -> None:
        return None

    def _apply(self, matrices: Tensor, x: Tensor, positions: NDArray[np.int64]) -> Tensor:
        chosen = matrices[torch.from_numpy(positions // self.tokens_per_frame)].to(x.dtype)
        return torch.einsum("tij,thcj->thci", chosen, x.view(*x.shape[:2], -1, 4)).flatten(-2)

    def queries(self, queries: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self._apply(self.matrices.mT, queries, positions)

    def keys(self, keys: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self._apply(self.matrices.inverse(), keys, positions)

    def values(self, values: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self._apply(self.matrices.inverse(), values, positions)

    def output(self, output: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self._apply(self.matrices, output, positions)


@pytest.mark.parametrize("strategy", ["workspace", "reference"])
@pytest.mark.parametrize("max_tokens", [4096, 70])
def test_all_four_functions_are_applied(
    make_cache: MakeCache, strategy: Strategy, max_tokens: int
) -> None:
    cache = make_cache(200, visible=[(0, 20), (90, 200)])
    queries, keys, values = torch.randn(3, 40, 2, 64)
    own = np.arange(200, 240)
    # Well-conditioned, so that the error is that of attention.
    matrices = torch.eye(4) + 0.2 * torch.randn(6, 4, 4)
    transform = FrameMatrices(matrices.double(), tokens_per_frame=40)
    out = paged_attention(
        queries,
        [cache.segment, DenseSegment(keys=keys, values=values, positions=own)],
        transform=transform,
        query_positions=own,
        workspace=Workspace(
            num_heads=2, head_dim=64, max_tokens=max_tokens, device="cpu", dtype=torch.float32
        ),
        strategy=strategy,
    )

    positions = np.concatenate((cache.positions, own))
    q = transform.queries(queries.double(), own)
    k = transform.keys(torch.cat((cache.keys, keys)).double(), positions)
    v = transform.values(torch.cat((cache.values, values)).double(), positions)
    weights = (torch.einsum("qhd,khd->hqk", q, k) / 8).softmax(-1)
    expected = transform.output(torch.einsum("hqk,khd->qhd", weights, v), own)
    assert (out - expected).norm() / expected.norm() <= 3e-6


def test_a_pass_may_read_the_same_pages_under_two_transforms(make_cache: MakeCache) -> None:
    cache = make_cache(200)
    queries = torch.randn(8, 2, 64)
    own = np.arange(200, 208)
    workspace = Workspace(
        num_heads=2, head_dim=64, max_tokens=256, device="cpu", dtype=torch.float32
    )
    grid = RopeGrid(RopeTables(head_dim=64), 4, 5)
    before = cache.segment.pages.keys.data.clone()
    outputs = [
        paged_attention(
            queries, [cache.segment], transform=each, query_positions=own, workspace=workspace
        )
        for each in (RopeTransform(grid), IdentityTransform(), RopeTransform(grid))
    ]
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-2)
    assert torch.equal(cache.segment.pages.keys.data.isnan(), before.isnan())
    assert torch.equal(cache.segment.pages.keys.data.nan_to_num(), before.nan_to_num())


def test_identity_returns_what_it_was_given() -> None:
    x = torch.randn(4, 2, 64)
    identity = IdentityTransform()
    for function in (identity.queries, identity.keys, identity.values, identity.output):
        assert function(x, np.arange(4)) is x
