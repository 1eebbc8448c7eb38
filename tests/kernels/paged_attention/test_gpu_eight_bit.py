"""8-bit attention in Triton against the one in plain torch."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from qvg_engine.kernels.codec.e4m3 import from_e4m3
from qvg_engine.kernels.device import device_of
from qvg_engine.kernels.paged_attention import (
    gpu_eight_bit,
    gpu_quantise,
    reference_eight_bit,
)
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# A device may round a query elsewhere: it multiplies and adds at once.
LSE_TOLERANCE = 1e-2 if DEVICE.type == "cuda" else 1e-4
VALUE_DTYPES = [torch.float16] + ([torch.uint8] if device_of(DEVICE).has_e4m3 else [])


def rows(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def empty_workspace(
    max_tokens: int, *, head_dim: int = 64, num_heads: int = 2, value_dtype: torch.dtype
) -> EightBitWorkspace:
    """NaN wherever there is a NaN, and the largest codes elsewhere."""
    workspace = EightBitWorkspace(
        num_heads=num_heads,
        head_dim=head_dim,
        max_tokens=max_tokens,
        device=DEVICE,
        value_dtype=value_dtype,
    )
    workspace.keys.fill_(127)
    workspace.values.fill_(0x7F if workspace.has_e4m3 else math.nan)
    workspace.key_scales.fill_(math.nan)
    workspace.clear()
    return workspace


@pytest.mark.parametrize("value_dtype", VALUE_DTYPES)
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (150, 128)])
def test_rows_are_quantised_as_in_the_reference(
    num_tokens: int, head_dim: int, value_dtype: torch.dtype
) -> None:
    keys = rows(num_tokens, 2, head_dim, seed=0).transpose(0, 1)
    values = rows(2, num_tokens, head_dim, seed=1) * 5
    keys[0, num_tokens // 2] = 0.0
    values[1, :, 3] = 0.0
    workspaces = []
    for implementation in (reference_eight_bit, gpu_quantise):
        workspace = empty_workspace(num_tokens + 20, head_dim=head_dim, value_dtype=value_dtype)
        for part in (values[:, : num_tokens // 3 + 1], values):
            implementation.bound_values(workspace, part)
        implementation.store(workspace, keys, values, start=7)
        workspaces.append(workspace)
    expected, got = workspaces
    written = slice(7, 7 + num_tokens)
    assert torch.equal(got.value_scales, expected.value_scales)
    assert torch.equal(got.key_scales[:, written], expected.key_scales[:, written])
    assert got.key_scales[:, :7].isnan().all()
    assert got.key_scales[:, 7 + num_tokens :].isnan().all()
    if DEVICE.type == "cpu":
        assert torch.equal(got.keys, expected.keys)
        assert torch.equal(got.values.view(torch.uint8), expected.values.view(torch.uint8))
        return
    # A device may round the product with a scale together with what comes after.
    assert (got.keys.int() - expected.keys.int()).abs().amax() <= 1
    if got.has_e4m3:
        codes, expected_codes = from_e4m3(got.values), from_e4m3(expected.values)
    else:
        codes, expected_codes = got.values.float(), expected.values.float()
    torch.testing.assert_close(
        codes[..., written], expected_codes[..., written], rtol=0.13, atol=2.0**-9
    )


@pytest.mark.parametrize("value_dtype", VALUE_DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("num_queries", "num_tokens", "head_dim", "num_ranges"),
    [(1, 1, 64, 1), (130, 300, 64, 1), (16, 700, 128, 4), (65, 256, 128, 2)],
)
def test_output_and_log_sums_are_those_of_the_reference(
    num_queries: int,
    num_tokens: int,
    head_dim: int,
    num_ranges: int,
    biased: bool,
    value_dtype: torch.dtype,
) -> None:
    queries = rows(num_queries, 2, head_dim, seed=0).transpose(0, 1) * 2
    queries[0, num_queries // 2] = 0.0
    keys, values = rows(2, num_tokens, head_dim, seed=1), rows(2, num_tokens, head_dim, seed=2)
    workspace = empty_workspace(num_tokens + 5, head_dim=head_dim, value_dtype=value_dtype)
    reference_eight_bit.bound_values(workspace, values)
    reference_eight_bit.store(workspace, keys, values, start=0)
    bias = rows(num_tokens, seed=3, dtype=torch.float32) if biased else None
    scale = head_dim**-0.5
    for dtype, tolerance in ((torch.float16, 4e-3), (torch.bfloat16, 1.6e-2)):
        given = queries.to(dtype)
        out, lse = gpu_eight_bit.attend(
            given, workspace, num_tokens, bias, scale, num_ranges=num_ranges
        )
        expected = reference_eight_bit.attend(given.float(), workspace, num_tokens, bias, scale)
        assert out.dtype == dtype
        # Weights are rounded beside the largest score so far, of a range of tokens: elsewhere than
        # in the reference, by half a unit of E4M3 each.
        tolerance = max(tolerance, 0.04 if workspace.has_e4m3 else 0.0)
        torch.testing.assert_close(out.float(), expected[0], rtol=0, atol=tolerance)
        torch.testing.assert_close(lse, expected[1], rtol=0, atol=LSE_TOLERANCE)


def test_one_block_of_tokens_is_rounded_as_in_the_reference() -> None:
    """Where both take the same largest score, E4M3 weights are the same, too."""
    queries = rows(1, 130, 64, seed=0, dtype=torch.float16)
    keys, values = rows(1, 32, 64, seed=1), rows(1, 32, 64, seed=2)
    for value_dtype in VALUE_DTYPES:
        workspace = empty_workspace(32, num_heads=1, value_dtype=value_dtype)
        reference_eight_bit.bound_values(workspace, values)
        reference_eight_bit.store(workspace, keys, values, start=0)
        out, _ = gpu_eight_bit.attend(queries, workspace, 32, None, 0.125)
        expected, _ = reference_eight_bit.attend(queries.float(), workspace, 32, None, 0.125)
        error = (out.float() - expected).norm() / expected.norm()
        assert error < 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("where", ["queries", "keys", "values"])
def test_what_is_not_finite_is_not_lost(where: str) -> None:
    for lost in (math.nan, math.inf):
        tensors = {name: rows(1, 150, 64, seed=0) for name in ("queries", "keys", "values")}
        tensors[where][0, 7, 3] = lost
        workspace = empty_workspace(150, num_heads=1, value_dtype=VALUE_DTYPES[-1])
        gpu_quantise.bound_values(workspace, tensors["values"])
        gpu_quantise.store(workspace, tensors["keys"], tensors["values"], start=0)
        out, _ = gpu_eight_bit.attend(tensors["queries"], workspace, 150, None, 0.125)
        assert not out[0, 7].isfinite().all()
        if where == "queries":
            assert out[0, 8].isfinite().all()


def test_variants_are_named_once_and_have_e4m3_from_89_on() -> None:
    variants = gpu_eight_bit.variants() + gpu_quantise.variants()
    assert len({variant.name for variant in variants}) == len(variants)
    offered = {
        cc: [v for v in gpu_eight_bit.variants() if v.is_offered_on(cc)] for cc in (80, 89, 90)
    }
    assert {cc: len(found) for cc, found in offered.items()} == {80: 16, 89: 32, 90: 16}
    assert not any(v.constants["E4M3"] for v in offered[80])
    assert all(v.constants["E4M3"] for v in offered[90])
