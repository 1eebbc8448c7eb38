import numpy as np
import pytest
import torch

from qvg_engine.kernels.rope import RopeGrid, RopeTables


@pytest.mark.parametrize(
    ("head_dim", "pairs"), [(128, (22, 21, 21)), (64, (12, 10, 10)), (12, (2, 2, 2))]
)
def test_pairs_are_split_as_in_wan(head_dim: int, pairs: tuple[int, int, int]) -> None:
    assert RopeTables(head_dim=head_dim).pairs == pairs


@pytest.mark.parametrize("position", [0, 1, 1023, 1024, 100_000])
def test_rows_are_exact_at_any_position(position: int) -> None:
    tables = RopeTables(head_dim=128)
    at = np.array([position])
    cos, sin = tables.rows(at, np.array([5]), np.array([0]))
    time = position / 10000.0 ** (np.arange(22) / 22)
    height = 5 / 10000.0 ** (np.arange(21) / 21)
    angles = np.concatenate((time, height, np.zeros(21)))
    # fp32 holds a cosine to 6e-8; an angle computed in fp32 would be off by 4e-3 at 100,000.
    np.testing.assert_allclose(cos[0].numpy(), np.cos(angles), rtol=0, atol=6e-8)
    np.testing.assert_allclose(sin[0].numpy(), np.sin(angles), rtol=0, atol=6e-8)


def test_tables_grow_in_powers_of_two_and_keep_their_rows() -> None:
    tables = RopeTables(head_dim=64)
    before = tables.axis(0, 5).clone()
    assert before.shape == (8, 2, 12)
    after = tables.axis(0, 1025)
    assert after.shape == (2048, 2, 12)
    assert torch.equal(after[:8], before)
    assert tables.axis(0, 3) is after
    assert tables.num_bytes == 8 * 2 * (2048 * 12 + 10 + 10)


def test_other_splits_and_bases() -> None:
    tables = RopeTables(head_dim=128, base=256.0, pairs=(8, 28, 28))
    cos, _ = tables.rows(np.array([3]), np.array([0]), np.array([7]))
    assert cos[0, 7] == pytest.approx(np.cos(3 * 256.0 ** (-7 / 8)), abs=6e-8)
    assert cos[0, 8:36].tolist() == [1.0] * 28
    assert cos[0, 127 // 2] == pytest.approx(np.cos(7 * 256.0 ** (-27 / 28)), abs=6e-8)


def test_grid_counts_columns_then_rows_then_frames() -> None:
    grid = RopeGrid(RopeTables(head_dim=64), height=3, width=5)
    positions = np.array([0, 4, 5, 14, 15, 1507])
    frame, row, column = grid.coordinates(positions)
    assert frame.tolist() == [0, 0, 0, 0, 1, 100]
    assert row.tolist() == [0, 0, 1, 2, 0, 1]
    assert column.tolist() == [0, 4, 0, 4, 0, 2]
