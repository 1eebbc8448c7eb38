"""Both decode kernels against the rows that were written, and each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qvg_engine.kernels.paged_attention import PageRuns, cpu, decode, place, reference
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.reference import rotate

MakeCache = Callable[..., Any]

VISIBLE = {
    "one token": (1, [(0, 1)]),
    "63": (63, [(0, 63)]),
    "64": (64, [(0, 64)]),
    "65": (65, [(0, 65)]),
    "a Wan frame and 7": (1567, [(0, 1567)]),
    "cut at both ends": (300, [(70, 299)]),
    "inside one page": (64, [(5, 6)]),
    "sink and window": (500, [(0, 100), (290, 500)]),
    "twice in one page": (64, [(0, 10), (20, 64)]),
}
CASES = pytest.mark.parametrize(("num_tokens", "visible"), VISIBLE.values(), ids=VISIBLE)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_grid(head_dim: int) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=head_dim), height=5, width=8)


@CASES
@pytest.mark.parametrize("page_size", [64, 128])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 64), (2, 128), (3, 64)])
def test_decoded_rows_are_the_written_ones(
    make_cache: MakeCache,
    num_tokens: int,
    visible: list[tuple[int, int]],
    page_size: int,
    num_heads: int,
    head_dim: int,
) -> None:
    cache = make_cache(
        num_tokens, num_heads=num_heads, head_dim=head_dim, page_size=page_size, visible=visible
    )
    count = len(cache.positions)
    out = torch.full((num_heads, count + 9, head_dim), torch.nan)
    decode(cache.segment.pages.keys, cache.segment.runs, out, start=4, rope=None)
    assert torch.equal(out[:, 4 : 4 + count], cache.keys.transpose(0, 1))
    assert out[:, :4].isnan().all()
    assert out[:, 4 + count :].isnan().all()


@CASES
def test_rotated_rows_have_their_own_positions(
    make_cache: MakeCache, num_tokens: int, visible: list[tuple[int, int]]
) -> None:
    grid = make_grid(64)
    cache = make_cache(num_tokens, num_heads=3, visible=visible)
    count = len(cache.positions)
    expected = rotate(cache.keys, *grid.rows(cache.positions)).transpose(0, 1)
    for kernel in (cpu.decode, reference.decode):
        out = torch.full((3, count + 9, 64), torch.nan)
        kernel(cache.segment.pages.keys, cache.segment.runs, out, start=9, rope=grid)
        # The CPU kernel may fuse a multiply and an add: one rounding of numbers below 8.
        torch.testing.assert_close(out[:, 9:], expected, rtol=0, atol=1e-6)
        assert out[:, :9].isnan().all()


@pytest.mark.parametrize("page_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_plain_decode_is_bit_equal_to_the_reference(
    make_cache: MakeCache, page_dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    cache = make_cache(150, key_dtype=page_dtype, head_dim=128)
    out, expected = torch.full((2, 2, 150, 128), torch.nan).to(out_dtype)
    decode(cache.segment.pages.keys, cache.segment.runs, out, start=0, rope=None)
    reference.decode(cache.segment.pages.keys, cache.segment.runs, expected, start=0, rope=None)
    assert torch.equal(out, expected)
    assert torch.equal(out, cache.keys.to(out_dtype).transpose(0, 1))


@pytest.mark.parametrize("page_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_rotation_is_in_fp32_and_rounded_once(
    make_cache: MakeCache, page_dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    grid = make_grid(128)
    cache = make_cache(150, key_dtype=page_dtype, head_dim=128)
    out = torch.full((2, 150, 128), torch.nan).to(out_dtype)
    decode(cache.segment.pages.keys, cache.segment.runs, out, start=0, rope=grid)
    exact = rotate(cache.keys.double(), *grid.rows(cache.positions)).transpose(0, 1)
    half_unit = torch.finfo(out_dtype).eps / 2
    error = (out.double() - exact).abs()
    assert (error <= half_unit * exact.abs() * 1.001 + 1e-6).all()


def test_a_row_decodes_to_the_same_bits_wherever_it_lies(make_cache: MakeCache) -> None:
    grid = make_grid(64)
    cache = make_cache(200, key_dtype=torch.bfloat16)
    whole, parts = torch.full((2, 2, 200, 64), torch.nan)
    pages, runs = cache.segment.pages.keys, cache.segment.runs
    decode(pages, runs, whole, start=0, rope=grid)
    for start, stop in ((0, 1), (1, 70), (70, 200)):
        decode(pages, runs.cut(start, stop), parts, start=start, rope=grid)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("rows_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("rotated", [False, True])
def test_dense_rows_are_placed_as_decoded_ones_are(
    make_cache: MakeCache, rows_dtype: torch.dtype, out_dtype: torch.dtype, rotated: bool
) -> None:
    rope = make_grid(64) if rotated else None
    cache = make_cache(150, key_dtype=rows_dtype, visible=[(0, 30), (100, 150)])
    rows = cache.keys.to(rows_dtype)
    placed, decoded, expected = torch.full((3, 2, 90, 64), torch.nan).to(out_dtype)
    place(rows, cache.positions, placed, start=5, rope=rope)
    decode(cache.segment.pages.keys, cache.segment.runs, decoded, start=5, rope=rope)
    reference.place(rows, cache.positions, expected, start=5, rope=rope)
    assert torch.equal(placed[:, 5:85], decoded[:, 5:85])
    torch.testing.assert_close(
        placed, expected, rtol=torch.finfo(out_dtype).eps, atol=1e-6, equal_nan=True
    )
    assert placed[:, :5].isnan().all()
    assert placed[:, 85:].isnan().all()


def test_nothing_to_decode_writes_nothing(make_cache: MakeCache) -> None:
    cache = make_cache(64)
    out = torch.full((2, 3, 64), torch.nan)
    empty = cache.segment.runs.cut(0, 0)
    for rope in (None, make_grid(64)):
        decode(cache.segment.pages.keys, empty, out, start=3, rope=rope)
    assert out.isnan().all()


@pytest.mark.parametrize(
    ("page_id", "first_token", "begin", "end"),
    [(2, 0, 0, 1), (-1, 0, 0, 1), (0, 0, 0, 65), (0, 0, -1, 1), (0, 0, 5, 4), (0, -9, 8, 10)],
)
def test_entries_outside_of_the_pages_are_stopped(
    make_cache: MakeCache, page_id: int, first_token: int, begin: int, end: int
) -> None:
    cache = make_cache(64)
    runs = PageRuns(*(np.array([value]) for value in (page_id, first_token, begin, end)))
    with pytest.raises(AssertionError):
        decode(cache.segment.pages.keys, runs, torch.empty(2, 100, 64), start=0, rope=None)


def test_a_buffer_without_room_is_stopped(make_cache: MakeCache) -> None:
    cache = make_cache(64)
    with pytest.raises(AssertionError):
        decode(
            cache.segment.pages.keys, cache.segment.runs, torch.empty(2, 64, 64), start=1, rope=None
        )
