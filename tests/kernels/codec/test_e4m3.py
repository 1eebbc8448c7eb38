"""The conversions against torch's own, which saturate nowhere."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from qvg_engine.kernels.codec.e4m3 import decode_e4m3, encode_e4m3, from_e4m3, to_e4m3
from qvg_engine.kernels.codec.elements import decode_float16, encode_float16

ALL_CODES = torch.arange(256).to(torch.uint8)


def edges(values: Tensor) -> Tensor:
    """All values [n], ascending, the points half-way between them, and their fp32 neighbours."""
    points = torch.cat((values, (values[1:] + values[:-1]) / 2))
    below = torch.nextafter(points, points.new_tensor(-torch.inf))
    above = torch.nextafter(points, points.new_tensor(torch.inf))
    return torch.cat((points, below, above))


def finite_e4m3() -> Tensor:
    values = ALL_CODES.view(torch.float8_e4m3fn).float()
    unique: Tensor = torch.unique(values[values.isfinite()])
    return unique


def numbers() -> Tensor:
    """fp32 numbers of every size, also subnormal ones, and all edges."""
    bits = torch.randint(-(2**31), 2**31, (200_000,)).to(torch.int32)
    some = bits.view(torch.float32)
    scaled = torch.randn(100_000) * torch.exp2(torch.randint(-16, 10, (100_000,)).float())
    zeros = torch.tensor([0.0, -0.0])
    return torch.cat((edges(finite_e4m3()), some[some.isfinite()], scaled, zeros))


def _convert(function: Any, values: Any, out: Any) -> None:
    for i in range(len(values)):
        out[i] = function(values[i])


convert = njit(_convert)


def test_to_e4m3_is_torchs_cast_below_464() -> None:
    x = numbers()
    x = x[x.abs() < 464]
    assert len(x) > 100_000
    assert torch.equal(to_e4m3(x), x.to(torch.float8_e4m3fn).view(torch.uint8))


def test_to_e4m3_saturates() -> None:
    x = torch.tensor([448, 449, 464, 465, 1e30, torch.inf])
    assert (to_e4m3(x) == 0x7E).all()
    assert (to_e4m3(-x) == 0xFE).all()


def test_from_e4m3_is_torchs_cast() -> None:
    expected = ALL_CODES.view(torch.float8_e4m3fn).float()
    values = from_e4m3(ALL_CODES)
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(values.nan_to_num(), expected.nan_to_num())
    assert torch.equal(values.signbit(), expected.signbit())


def test_nan_stays_nan() -> None:
    assert from_e4m3(to_e4m3(torch.tensor([torch.nan, -torch.nan]))).isnan().all()


def test_numba_converts_as_torch_does() -> None:
    x = torch.cat((numbers(), torch.tensor([torch.inf, -torch.inf])))
    codes = np.full(len(x), 0x55, np.uint8)
    convert(encode_e4m3, x.numpy(), codes)
    assert torch.equal(torch.from_numpy(codes), to_e4m3(x))
    values = np.zeros(256, np.float32)
    convert(decode_e4m3, ALL_CODES.numpy(), values)
    expected = from_e4m3(ALL_CODES).numpy()
    np.testing.assert_array_equal(values, expected)
    assert (np.signbit(values) == np.signbit(expected)).all()


def test_float16_in_numba_is_torchs_saturated() -> None:
    halves = torch.arange(-(2**15), 2**15).to(torch.int16)
    halves = halves[halves.view(torch.float16).isfinite()]
    values = np.full(len(halves), np.nan, np.float32)
    convert(decode_float16, halves.numpy(), values)
    assert torch.equal(torch.from_numpy(values), halves.view(torch.float16).float())
    assert (np.signbit(values) == (halves < 0).numpy()).all()

    x = torch.cat((edges(torch.from_numpy(values).sort().values.unique()), numbers()))
    x = torch.cat((x, torch.tensor([torch.inf, -torch.inf])))
    codes = np.full(len(x), 0x55, np.int16)
    convert(encode_float16, x.numpy(), codes)
    expected = x.clamp(-65504, 65504).to(torch.float16)
    # Of the sign of zero nothing depends.
    assert torch.equal(torch.from_numpy(codes).view(torch.float16), expected)
