"""Points of many kinds, some of them unkind."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def _normal(shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(shape)


def _clusters(shape: tuple[int, int, int]) -> Tensor:
    heads, tokens, head_dim = shape
    centres = 4 * torch.randn(heads, 20, head_dim)
    return centres[:, torch.arange(tokens) % 20] + 0.3 * torch.randn(shape)


def _tight_clusters(shape: tuple[int, int, int]) -> Tensor:
    heads, tokens, head_dim = shape
    centres = 100 * torch.randn(heads, 4, head_dim)
    return centres[:, torch.arange(tokens) % 4] + 0.01 * torch.randn(shape)


def _offset(shape: tuple[int, int, int]) -> Tensor:
    return 1e3 * torch.randn(shape[0], 1, shape[2]).sign() + 0.1 * torch.randn(shape)


def _huge_channel(shape: tuple[int, int, int]) -> Tensor:
    points = torch.randn(shape)
    points[:, :, 3] *= 1e4
    return points


def _outliers(shape: tuple[int, int, int]) -> Tensor:
    points = torch.randn(shape)
    points[:, ::50] *= 1e3
    return points


def _duplicates(shape: tuple[int, int, int]) -> Tensor:
    heads, tokens, head_dim = shape
    return torch.randn(heads, 6, head_dim)[:, torch.randint(6, (tokens,))]


def _whole_numbers(shape: tuple[int, int, int]) -> Tensor:
    """Full of distances that are exactly equal."""
    return torch.randint(-1, 2, shape).float()


KINDS: dict[str, Callable[[tuple[int, int, int]], Tensor]] = {
    "normal": _normal,
    "clusters": _clusters,
    "tight clusters": _tight_clusters,
    "offset": _offset,
    "huge channel": _huge_channel,
    "outliers": _outliers,
    "duplicates": _duplicates,
    "whole numbers": _whole_numbers,
    "constant": lambda shape: torch.full(shape, 3.7),
    "zero": torch.zeros,
    "1e-6": lambda shape: 1e-6 * torch.randn(shape),
    "1e6": lambda shape: 1e6 * torch.randn(shape),
    "1e-30": lambda shape: 1e-30 * torch.randn(shape),
    "1e37": lambda shape: 1e37 * torch.randn(shape),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_points() -> Callable[..., Tensor]:
    """Points of a kind: fp32 [heads, tokens, head_dim]."""

    def make(kind: str, *shape: int) -> Tensor:
        heads, tokens, head_dim = shape
        return KINDS[kind]((heads, tokens, head_dim))

    return make
