"""Rows that theory knows something about."""

import torch
from torch import Tensor


def normal_rows(
    tokens: int = 150, heads: int = 2, head_dim: int = 128, *, seed: int = 1, spread: float = 1.0
) -> Tensor:
    """Independent normal numbers, fp32 [tokens, heads, head_dim]."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(tokens, heads, head_dim, generator=generator)


def clustered_rows(
    tokens: int = 600, heads: int = 2, head_dim: int = 128, *, clusters: int = 8, seed: int = 2
) -> Tensor:
    """Normal numbers about few centres that are far apart; channels differ in how loud they are."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(clusters, heads, head_dim, generator=generator)
    loudness = torch.rand(heads, head_dim, generator=generator) + 0.2
    member = torch.randint(clusters, (tokens,), generator=generator)
    noise = normal_rows(tokens, heads, head_dim, seed=seed + 1)
    return centres[member] + loudness * noise


def rows_with_outliers(tokens: int = 256) -> Tensor:
    """Normal numbers, but for two channels of each head that are far from zero."""
    rows = normal_rows(tokens)
    rows[..., 3] += 40
    rows[..., 70] -= 25
    return rows
