"""The Triton rotation against the reference: on a GPU, or in Triton's interpreter."""

import numpy as np
import pytest
import torch

from qvg_engine.kernels.rope import RopeGrid, RopeTables, reference

pytest.importorskip("triton", reason="Triton is not installed")

from qvg_engine.kernels.rope import gpu, rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rounding(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding; Triton's interpreter cuts bf16 off instead."""
    eps = torch.finfo(dtype).eps
    return eps if dtype == torch.bfloat16 and DEVICE == "cpu" else eps / 2


def make_grid(head_dim: int, *, device: str = DEVICE) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=head_dim, device=device), height=5, width=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "head_dim"),
    [(1, 1, 64), (33, 3, 64), (70, 2, 128), (5, 2, 24), (3, 2, 2)],
)
def test_rows_are_rotated_in_fp32_and_rounded_once(
    num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    positions = np.random.default_rng(0).integers(0, 50_000, num_tokens)
    x = torch.randn(num_tokens, num_heads, head_dim).to(DEVICE, dtype)
    exact = reference.rotate(x.cpu().double(), *make_grid(head_dim, device="cpu").rows(positions))
    rotated = gpu.rotate(x, make_grid(head_dim), positions)
    assert rotated.dtype == dtype
    error = (rotated.cpu().double() - exact).abs()
    # Before the rounding, fp32 angles and products of numbers below 6.
    assert (error <= rounding(dtype) * exact.abs() * 1.001 + 1e-6).all()


def test_strided_rows_are_read_and_left_as_they_are() -> None:
    grid, positions = make_grid(64), np.arange(9) * 5
    wide = torch.randn(9, 3, 192, device=DEVICE)
    for x in (wide[..., 64:128], wide[..., ::3], wide[:, :2].expand(9, 2, 192)[..., :64]):
        before = x.clone()
        expected = gpu.rotate(before, grid, positions)
        assert torch.equal(gpu.rotate(x, grid, positions), expected)
        assert torch.equal(x, before)


def test_tables_of_uneven_axes_are_read_where_they_end() -> None:
    tables = RopeTables(head_dim=64, pairs=(1, 31, 0), device=DEVICE)
    grid = RopeGrid(tables, height=3, width=1)
    positions = np.array([0, 1, 2, 3, 47])
    x = torch.randn(5, 1, 64, device=DEVICE)
    expected = reference.rotate(x, *grid.rows(positions)).float()
    torch.testing.assert_close(gpu.rotate(x, grid, positions), expected, rtol=0, atol=1e-6)


def test_no_tokens_are_no_launch() -> None:
    assert gpu.rotate(torch.empty(0, 2, 64), make_grid(64), np.empty(0, np.int64)).shape[0] == 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_are_kept() -> None:
    x = torch.zeros(2, 1, 64, dtype=torch.bfloat16, device=DEVICE)
    x[0, 0, 3], x[1, 0, 5] = torch.inf, torch.nan
    rotated = gpu.rotate(x, make_grid(64), np.array([0, 7]))
    assert rotated[0, 0, 3] == torch.inf
    assert rotated[1, 0, 5].isnan()
    assert rotated[1, 0, 37].isnan()


@pytest.mark.parametrize("positions", [[-1, 0], [0], [0, 2**31]])
def test_wrong_positions_are_stopped(positions: list[int]) -> None:
    with pytest.raises(AssertionError):
        gpu.rotate(torch.zeros(2, 1, 64, device=DEVICE), make_grid(64), np.array(positions))


def test_heads_are_spread_over_programs_until_there_are_enough() -> None:
    assert gpu.heads_a_program(12, 1) == 1
    assert gpu.heads_a_program(12, 293) == 4
    assert gpu.heads_a_program(12, 5000) == 12
    assert gpu.heads_a_program(1, 1) == 1


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_gpu_gets_this_kernel_and_the_host_does_not_wait() -> None:
    grid, positions = make_grid(128), np.arange(100)
    x = torch.randn(100, 2, 128, device=DEVICE)
    expected = rotate(x, grid, positions)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rotated = rotate(x, grid, positions)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(rotated, expected)
    assert torch.equal(rotated, gpu.rotate(x, grid, positions))
