"""The rotation against complex multiplication in the interleaved order of published weights."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.rope import RopeGrid, RopeTables, cpu, reference, rotate
from qvg_engine.kernels.rope.layout import to_half_split, to_interleaved

HEIGHT, WIDTH = 3, 5


def make_grid(head_dim: int) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=head_dim), HEIGHT, WIDTH)


def rotate_complex(x: Tensor, positions: NDArray[np.int64]) -> Tensor:
    """Wan's rotation, in complex128: x [tokens, heads, head_dim] in interleaved order."""
    head_dim = x.shape[-1]
    time, space = head_dim - 4 * (head_dim // 6), 2 * (head_dim // 6)
    frame, rest = np.divmod(positions, HEIGHT * WIDTH)
    angles = np.concatenate(
        [
            np.outer(at, 1 / 10000.0 ** (np.arange(0, dim, 2) / dim))
            for at, dim in ((frame, time), (rest // WIDTH, space), (rest % WIDTH, space))
        ],
        axis=1,
    )
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:2], -1, 2))
    turned = pairs * torch.from_numpy(np.exp(1j * angles))[:, None]
    return torch.view_as_real(turned).reshape(x.shape)


@pytest.mark.parametrize("kernel", ["reference", "cpu"])
@pytest.mark.parametrize(("num_tokens", "num_heads", "head_dim"), [(1, 1, 64), (67, 3, 128)])
def test_kernels_agree_with_complex_multiplication(
    kernel: str, num_tokens: int, num_heads: int, head_dim: int
) -> None:
    grid = make_grid(head_dim)
    positions = np.random.default_rng(0).integers(0, 50_000, num_tokens)
    x = torch.randn(num_tokens, num_heads, head_dim)
    split = to_half_split(x)
    if kernel == "cpu":
        rotated = cpu.rotate(split, grid, positions)
    else:
        rotated = reference.rotate(split, *grid.rows(positions))
    # Two fp32 products of numbers below 5, and fp32 cosines: a few roundings of 3e-7.
    torch.testing.assert_close(
        to_interleaved(rotated).double(), rotate_complex(x, positions), rtol=0, atol=1e-6
    )


def test_bf16_is_rounded_once() -> None:
    grid = make_grid(128)
    positions = np.arange(100) * 37
    x = torch.randn(100, 2, 128).bfloat16()
    exact = reference.rotate(x.double(), *grid.rows(positions))
    for rotated in (
        cpu.rotate(x, grid, positions),
        reference.rotate(x, *grid.rows(positions)),
    ):
        assert rotated.dtype == torch.bfloat16
        # Half a unit in the last place of bf16 (2^-8), and fp32 arithmetic before it.
        error = (rotated.double() - exact).abs() / (exact.abs() + 1e-4)
        assert error.max() <= 2**-8 + 1e-4


def test_bf16_keeps_nan_and_infinity() -> None:
    all_ones = torch.full((1, 1, 64), -1, dtype=torch.int16).view(torch.bfloat16)
    rotated = cpu.rotate(all_ones, make_grid(64), np.array([7]))
    assert rotated.isnan().all()
    infinite = torch.zeros(1, 1, 64, dtype=torch.bfloat16)
    infinite[0, 0, 3] = torch.inf
    assert cpu.rotate(infinite, make_grid(64), np.array([0]))[0, 0, 3] == torch.inf


def test_inverse_undoes_the_rotation() -> None:
    grid = make_grid(64)
    x = torch.randn(40, 2, 64)
    rows = grid.rows(np.arange(40) * 1001)
    back = reference.rotate(reference.rotate(x, *rows), *rows, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


def test_products_depend_on_the_distance_only() -> None:
    grid = make_grid(64)
    frame = HEIGHT * WIDTH
    query, key = torch.randn(2, 1, 1, 64)
    near = rotate(query, grid, np.array([7 * frame])) * rotate(key, grid, np.array([2 * frame]))
    far = rotate(query, grid, np.array([905 * frame])) * rotate(key, grid, np.array([900 * frame]))
    torch.testing.assert_close(near.sum(), far.sum(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_kept_and_strided_input_read(dtype: torch.dtype) -> None:
    grid = make_grid(64)
    positions = np.arange(9)
    wide = torch.randn(9, 2, 128).to(dtype)
    rotated = rotate(wide[..., :64], grid, positions)
    assert rotated.dtype == dtype
    expected = reference.rotate(wide[..., :64].double(), *grid.rows(positions))
    torch.testing.assert_close(rotated.double(), expected, rtol=2**-8, atol=1e-6)
