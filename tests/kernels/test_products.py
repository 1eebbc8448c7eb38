"""Products against NumPy's, in fp64."""

import numpy as np
import pytest

from qvg_engine.kernels.kmeans.rows import largest, transpose
from qvg_engine.kernels.products import HALF_TILE, ROWS, TILE, multiply


@pytest.mark.parametrize("width", [HALF_TILE, TILE, TILE + HALF_TILE, 4 * TILE])
@pytest.mark.parametrize("count", [1, ROWS, ROWS + 1, 3 * ROWS])
@pytest.mark.parametrize("head_dim", [1, 3, 128])
def test_products_are_those_of_the_rows(width: int, count: int, head_dim: int) -> None:
    generator = np.random.default_rng(0)
    num_tiles, num_rows = -(-width // TILE), -(-count // ROWS) * ROWS
    first = 5
    rows = generator.standard_normal((first + num_rows, head_dim), dtype=np.float32)
    centroids = generator.standard_normal((num_tiles * TILE, head_dim), dtype=np.float32)
    tiles = np.empty((num_tiles, head_dim, TILE), np.float32)
    for tile in range(num_tiles):
        transpose(centroids, tile * TILE, tiles[tile])
    # A row more than may be written.
    products = np.full((num_rows + 1, width), 7, np.float32)
    multiply(rows, first, count, tiles, products)
    expected = rows[first : first + count].astype(np.float64) @ centroids[:width].T
    lengths = np.linalg.norm(rows[first : first + count], axis=1)[:, None]
    bound = (head_dim + 4) * 2.0**-24 * lengths * np.linalg.norm(centroids[:width], axis=1)
    assert (np.abs(products[:count] - expected) <= bound).all()
    assert (products[num_rows] == 7).all()


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 40])
def test_columns_are_rows(num_rows: int) -> None:
    rows = np.arange(3 * (num_rows + 2), dtype=np.float32).reshape(-1, 3)
    columns = np.empty((3, num_rows), np.float32)
    transpose(rows, 2, columns)
    assert np.array_equal(columns, rows[2:].T)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 64)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_magnitude_is_found_anywhere(shape: tuple[int, int], sign: int) -> None:
    rows = np.full(shape, 0.5, np.float32)
    assert largest(rows) == np.float32(0.5)
    for row in range(shape[0]):
        for i in range(shape[1]):
            rows[row, i] = sign * 3
            assert largest(rows) == 3
            rows[row, i] = 0.5
