"""Attention on the CPU's vectors against the reference in fp64."""

import math

import pytest
import torch
from torch import Tensor

from qvg_engine.kernels.paged_attention import cpu_attention
from qvg_engine.kernels.products import ROWS, TILE

UNIT = 2.0**-24


def exact(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    scores = queries.double() @ keys.double().mT * scale
    if bias is not None:
        scores += bias.double()
    return scores.softmax(-1) @ values.double(), scores.logsumexp(-1)


def padded(rows: Tensor, room: int) -> Tensor:
    """The rows [heads, tokens, head_dim] in a workspace of `room` tokens, NaN after them."""
    workspace = rows.new_full((rows.shape[0], room, rows.shape[2]), math.nan)
    workspace[:, : rows.shape[1]] = rows
    return workspace


@pytest.mark.parametrize("head_dim", [ROWS, 64, 128])
@pytest.mark.parametrize("num_queries", [1, TILE, TILE + 1, 8 * TILE + 3])
@pytest.mark.parametrize("num_tokens", [1, ROWS - 1, 127, 128, 300])
@pytest.mark.parametrize("biased", [False, True])
def test_output_and_log_sums_are_those_of_exact_attention(
    head_dim: int, num_queries: int, num_tokens: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    queries = 2 * torch.randn(3, num_queries, head_dim, generator=generator)
    keys, values = torch.randn(2, 3, num_tokens, head_dim, generator=generator)
    bias = torch.randn(num_tokens, generator=generator) if biased else None
    scale = head_dim**-0.5
    out, log_sums = cpu_attention.attend(
        queries, padded(keys, 301), padded(values, 301), num_tokens, bias, scale
    )
    expected, expected_log_sums = exact(queries, keys, values, bias, scale)
    # A score is off by a unit for each product, times what its terms sum to; weights are off by as
    # much of themselves, and by a few units of exp; sums over blocks add a unit a block.
    terms = scale * (queries.abs().double() @ keys.abs().double().mT).amax(-1)
    bound = UNIT * (head_dim * terms + 16 + num_tokens)
    assert ((log_sums - expected_log_sums).abs() <= bound).all()
    reach = values.abs().double().amax((1, 2))[:, None, None]
    assert ((out - expected).abs() <= 2 * bound[..., None] * reach).all()


def test_scores_that_overflow_exp_and_weights_that_vanish() -> None:
    queries = torch.full((1, 5, 64), 20.0)
    keys = torch.zeros(1, 200, 64)
    keys[0, 150] = 20.0
    values = torch.randn(1, 200, 64)
    out, log_sums = cpu_attention.attend(queries, keys, values, 200, None, 1.0)
    assert torch.equal(out, values[:, 150:151].expand_as(out))
    torch.testing.assert_close(log_sums, torch.full((1, 5), 25600.0))


@pytest.mark.parametrize("where", ["queries", "keys", "values"])
def test_nan_is_not_lost(where: str) -> None:
    rows = {name: torch.randn(1, 40, 64) for name in ("queries", "keys", "values")}
    rows[where][0, 7, 3] = math.nan
    out, _ = cpu_attention.attend(rows["queries"], rows["keys"], rows["values"], 40, None, 0.125)
    assert out[0, 7].isnan().any()
    if where == "queries":
        assert not out[0, 8].isnan().any()


def test_a_query_gets_the_same_alone_and_with_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 700, 64, generator=generator)
    keys, values = torch.randn(2, 3, 1100, 64, generator=generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        out, log_sums = cpu_attention.attend(queries, keys, values, 1100, None, 0.125)
        torch.set_num_threads(1)
        again = cpu_attention.attend(queries, keys, values, 1100, None, 0.125)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(out, again[0])
    assert torch.equal(log_sums, again[1])
    alone, _ = cpu_attention.attend(queries[:, 411:412], keys, values, 1100, None, 0.125)
    assert torch.equal(alone, out[:, 411:412])


def test_what_is_supported() -> None:
    rows = torch.empty(2, 3, 64)
    assert cpu_attention.supports(rows, rows)
    assert not cpu_attention.supports(rows.bfloat16(), rows.bfloat16())
    assert not cpu_attention.supports(rows[..., : ROWS + 1], rows[..., : ROWS + 1])
    assert not cpu_attention.supports(rows.to("meta"), rows.to("meta"))
