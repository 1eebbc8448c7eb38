"""8-bit attention in plain torch: what is stored, and the error that 8 bits add."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec.e4m3 import from_e4m3
from qvg_engine.kernels.device import Device
from qvg_engine.kernels.paged_attention import eight_bit, reference, reference_eight_bit
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace

CAPTURES = Path(__file__).resolve().parents[2] / "data" / "captures"


def filled(
    keys: Tensor, values: Tensor, *, value_dtype: torch.dtype = torch.uint8
) -> EightBitWorkspace:
    """A workspace with these rows [heads, tokens, head_dim], stored in two parts."""
    num_heads, num_tokens, head_dim = keys.shape
    workspace = EightBitWorkspace(
        num_heads=num_heads,
        head_dim=head_dim,
        max_tokens=num_tokens + 3,
        device=keys.device,
        value_dtype=value_dtype,
    )
    workspace.clear()
    half = num_tokens // 2
    for part in (values[:, :half], values[:, half:]):
        eight_bit.bound_values(workspace, part)
    eight_bit.store(workspace, keys[:, :half], values[:, :half], start=0)
    eight_bit.store(workspace, keys[:, half:], values[:, half:], start=half)
    return workspace


def relative_error(out: Tensor, expected: Tensor) -> float:
    return float((out.float() - expected).norm() / expected.norm())


def test_rows_are_within_half_a_step_of_their_codes() -> None:
    x = torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(0))
    x[0, 3] = 0.0
    x[1, 4] *= 1e6
    codes, scales = reference_eight_bit.quantise_rows(x)
    assert codes.abs().amax() == 127
    assert scales[0, 3] == 0
    error = (codes * scales[..., None] - x).abs()
    assert (error <= 0.501 * scales[..., None]).all()


def test_values_are_transposed_and_use_the_range_of_their_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 40, 64, generator=generator)
    values[:, :, 5] *= 100
    values[:, :, 6] = 0.0
    workspace = filled(torch.randn(2, 40, 64, generator=generator), values)
    codes = from_e4m3(workspace.values[:, :, :40])
    assert codes.abs().amax(-1)[0].tolist() == [448.0] * 6 + [0.0] + [448.0] * 57
    stored = (codes * workspace.value_scales[..., None]).mT
    # Half a unit of three bits of mantissa, of a channel's range below what is normal.
    bound = values.abs() / 16 + workspace.value_scales[:, None] * 2.0**-10
    assert ((stored - values).abs() <= 1.001 * bound).all()


@pytest.mark.parametrize("value_dtype", [torch.uint8, torch.float16])
def test_a_bound_several_times_too_large_costs_no_precision(value_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 1, 200, 64, generator=generator)
    expected, _ = reference.attend(queries, keys, values, None, 0.125)
    errors = []
    for factor in (1.0, 3.0):
        workspace = filled(keys, values, value_dtype=value_dtype)
        workspace.value_scales *= factor
        eight_bit.store(workspace, keys, values, start=0)
        out, _ = eight_bit.attend(queries, workspace, 200, None, 0.125)
        errors.append(relative_error(out, expected))
    assert errors[1] < 1.15 * errors[0]


def add_outliers(x: Tensor) -> Tensor:
    """A few channels many times the others, as keys and values of large networks have."""
    x[..., 3] *= 12
    x[..., 40] += 8
    return x


# Measured, the relative error that INT8 queries and keys add to the output: 0.0032 and 0.0078; that
# E4M3 weights and values add to it: 0.0052 and 0.018; and to the log-sum-exp, at most: 0.068, 0.11.
@pytest.mark.parametrize(
    ("rows", "int8_bound", "bound", "lse_bound"),
    [("capture", 0.0045, 0.007, 0.09), ("outliers", 0.011, 0.025, 0.15)],
)
def test_the_error_that_eight_bits_add(
    rows: str, int8_bound: float, bound: float, lse_bound: float
) -> None:
    if rows == "capture":
        (path,) = CAPTURES.glob("*.safetensors")
        tensors = load_file(path)
        queries, keys, values = (
            tensors[f"layer.3.{name}"].float().transpose(0, 1)
            for name in ("queries", "keys", "values")
        )
    else:
        generator = torch.Generator().manual_seed(0)
        queries = add_outliers(torch.randn(2, 256, 128, generator=generator)) / 4
        keys = add_outliers(torch.randn(2, 2048, 128, generator=generator))
        values = add_outliers(torch.randn(2, 2048, 128, generator=generator))
    num_tokens, scale = keys.shape[1], 128**-0.5
    expected, expected_lse = reference.attend(queries, keys, values, None, scale)
    errors = {}
    for value_dtype in (torch.uint8, torch.float16):
        workspace = filled(keys, values, value_dtype=value_dtype)
        out, lse = eight_bit.attend(queries, workspace, num_tokens, None, scale)
        errors[value_dtype] = relative_error(out, expected)
        assert (lse - expected_lse).abs().amax() < lse_bound
    assert errors[torch.float16] < int8_bound
    assert errors[torch.uint8] < bound


def test_a_bias_and_the_log_sum_are_those_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 130, 64, generator=generator)
    bias = 3 * torch.randn(130, generator=generator)
    workspace = filled(keys, values)
    out, lse = eight_bit.attend(queries, workspace, 130, bias, 0.125)
    expected = reference.attend(queries, keys, values, bias, 0.125)
    assert relative_error(out, expected[0]) < 0.04
    torch.testing.assert_close(lse, expected[1], rtol=0, atol=0.02)


def test_bytes_are_those_of_the_tensors() -> None:
    for value_dtype in (torch.uint8, torch.float16):
        workspace = EightBitWorkspace(
            num_heads=3, head_dim=64, max_tokens=100, device="cpu", value_dtype=value_dtype
        )
        bytes_for = EightBitWorkspace.bytes_for(
            num_heads=3, head_dim=64, max_tokens=100, value_dtype=value_dtype
        )
        assert workspace.num_bytes == bytes_for
        assert workspace.max_tokens == 112
    assert (
        EightBitWorkspace.bytes_for(
            num_heads=1, head_dim=64, max_tokens=16, value_dtype=torch.uint8
        )
        == 16 * (64 + 64 + 4 + 4) + 64 * 4
    )


def test_a_workspace_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 token, got 0"):
        EightBitWorkspace(num_heads=1, head_dim=64, max_tokens=0, device="cpu")


def test_a_head_dim_that_no_kernel_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim of 32, 64 or 128, got 24"):
        EightBitWorkspace(num_heads=1, head_dim=24, max_tokens=16, device="cpu")


def test_e4m3_is_chosen_where_there_are_products_of_it() -> None:
    assert eight_bit.value_dtype_for(Device(capability=86, num_multiprocessors=1)) == torch.float16
    assert eight_bit.value_dtype_for(Device(capability=89, num_multiprocessors=1)) == torch.uint8


@pytest.mark.parametrize("where", ["keys", "values"])
def test_nan_is_not_lost(where: str) -> None:
    rows = {name: torch.randn(1, 40, 64) for name in ("keys", "values")}
    rows[where][0, 7, 3] = math.nan
    workspace = filled(rows["keys"], rows["values"])
    out, _ = eight_bit.attend(torch.randn(1, 2, 64), workspace, 40, None, 0.125)
    assert out.isnan().any(-1).all()
