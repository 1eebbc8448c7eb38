import math

import pytest
import torch

from qvg_engine.kernels.paged_attention import dense, reference


def test_dense_attention_agrees_with_the_reference_with_and_without_a_bias() -> None:
    queries, keys, values = torch.randn(2, 70, 64), torch.randn(2, 90, 64), torch.randn(2, 90, 64)
    for bias in (None, torch.randn(90)):
        out, lse = dense.attend(queries, keys, values, bias, 0.1, needs_lse=True)
        expected = reference.attend(queries, keys, values, bias, 0.1)
        torch.testing.assert_close(out, expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(lse, expected[1], rtol=0, atol=2e-6)


def test_the_reference_works_in_blocks_of_queries() -> None:
    queries, keys = torch.randn(1, 1500, 8), torch.randn(1, 9, 8)
    out, lse = reference.attend(queries, keys, keys, None, 1.0)
    scores = queries @ keys.mT
    torch.testing.assert_close(out, scores.softmax(-1) @ keys, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=1e-5)


def test_merge_with_nothing_is_the_other_part() -> None:
    part = torch.randn(2, 5, 8), torch.randn(2, 5)
    nothing = torch.zeros(2, 5, 8), torch.full((2, 5), -math.inf)
    for pair in ((part, nothing), (nothing, part)):
        out, lse = dense.merge(*pair)
        assert torch.equal(out, part[0])
        assert torch.equal(lse, part[1])
    out, lse = dense.merge(nothing, nothing)
    assert torch.equal(out, nothing[0])
    assert torch.equal(lse, nothing[1])


def test_merge_survives_scores_that_overflow_exp() -> None:
    low = torch.ones(1, 1, 4), torch.tensor([[-900.0]])
    high = torch.zeros(1, 1, 4), torch.tensor([[900.0]])
    out, lse = dense.merge(low, high)
    assert torch.equal(out, high[0])
    assert lse.item() == 900.0


@pytest.mark.parametrize("needs_lse", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_devices_without_the_cpu_kernel_run_too(needs_lse: bool, biased: bool) -> None:
    queries = torch.empty(2, 70, 64, device="meta", dtype=torch.bfloat16)
    keys = torch.empty(2, 90, 64, device="meta", dtype=torch.bfloat16)
    bias = torch.empty(90, device="meta") if biased else None
    out, lse = dense.attend(queries, keys, keys, bias, 0.1, needs_lse=needs_lse)
    assert out.shape == queries.shape
    assert lse.shape == (2, 70)
    assert lse.dtype == torch.float32
