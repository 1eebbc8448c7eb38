"""Both decode kernels against the definition, and each other."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.kernels import threads
from qvg_engine.kernels.codec import (
    PRESETS,
    CodecSpec,
    CodedPages,
    cpu,
    decode,
    encode_span,
    half_split_groups,
    reference,
)
from qvg_engine.kernels.codec.packing import pack
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.kernels.rope.reference import rotate
from tests.kernels.codec.conftest import check_decode_bits
from tests.kernels.conftest import as_runs

MakePages = Callable[..., CodedPages]

PAGE_SIZE = 16
# (page, first token, begin, end): pages of several codebooks, some cut, one of them twice.
RUNS = {
    "one token": [(3, 0, 0, 1)],
    "a page": [(0, 48, 0, 16)],
    "inside a page": [(4, 0, 5, 6)],
    "cut at both ends": [(2, 0, 7, 16), (5, 16, 0, 16), (1, 32, 0, 9)],
    "sink and window": [(0, 0, 0, 3), (4, 800, 10, 16), (3, 816, 0, 11)],
    "twice in a page": [(1, 0, 0, 5), (1, 0, 9, 13)],
    "an entry without tokens": [(1, 0, 4, 4), (2, 16, 1, 3)],
    "nothing": [],
}
CASES = pytest.mark.parametrize("entries", RUNS.values(), ids=RUNS)
KERNELS = pytest.mark.parametrize("kernel", [cpu.decode, reference.decode], ids=["cpu", "ref"])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_grid(head_dim: int = 64) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=head_dim), height=5, width=8)


def filled(make_pages: MakePages, spec: CodecSpec) -> CodedPages:
    """Six pages, two of each of three codebooks, of rows in half-split order."""
    pages = make_pages(spec, channel_groups=half_split_groups(64, spec.group))
    for slot, page_ids in enumerate(([3, 0], [4, 1], [2, 5])):
        encode_span(pages, np.array(page_ids), 2 * torch.randn(32, 2, 64), slot=slot)
    assert pages.slot_of_page.tolist() == [0, 1, 2, 0, 1, 2]
    return pages


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_rotated", [False, True])
def test_kernels_decode_to_the_same_bits(
    make_pages: MakePages,
    spec: CodecSpec,
    entries: list[tuple[int, int, int, int]],
    dtype: torch.dtype,
    is_rotated: bool,
) -> None:
    rope = make_grid() if is_rotated else None
    pages, runs = filled(make_pages, spec), as_runs(entries)
    check_decode_bits(pages, runs, dtype=dtype, rope=rope)


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 192])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("trellis", [False, True])
def test_rows_of_all_sizes_decode_to_the_same_bits(
    make_pages: MakePages, trellis: bool, bits: int, stages: int, head_dim: int
) -> None:
    # Codes fill whole vectors of 16 bytes, or of 8, one or several, or they do not.
    positive = tuple(0.3 + k + k * k / 40 for k in range(2 ** (bits + trellis) // 2))
    spec = msgspec.structs.replace(
        PRESETS["q2"],
        stages=stages,
        centroids=9,
        bits=bits,
        trellis=trellis,
        levels=(*(-x for x in reversed(positive)), *positive),
        group=head_dim // 2,
    )
    pages = make_pages(spec, head_dim=head_dim)
    pages.slot_of_page[:] = [2, 0, 1, 1, 0, 2]
    pages.codes.copy_(torch.randint(256, pages.codes.shape))
    pages.ids.copy_(torch.randint(7, pages.ids.shape))
    pages.scales.copy_(torch.randint(1, 0x7E, pages.scales.shape))
    runs = as_runs(RUNS["cut at both ends"])
    out, expected = torch.full((2, 2, runs.num_tokens, head_dim), torch.nan)
    decode(pages, runs, out, start=0, rope=None)
    reference.decode(pages, runs, expected, start=0, rope=None)
    assert out.isfinite().all()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("is_rotated", [False, True])
def test_threads_decode_to_the_same_bits(
    make_pages: MakePages, monkeypatch: pytest.MonkeyPatch, is_rotated: bool
) -> None:
    pages = filled(make_pages, PRESETS["q2"])
    runs, rope = as_runs(RUNS["cut at both ends"]), make_grid() if is_rotated else None
    alone, together = (torch.full((2, runs.num_tokens, 64), torch.nan) for _ in range(2))
    cpu.decode(pages, runs, alone, start=0, rope=rope)
    monkeypatch.setattr(threads, "_LEAST_WORK", 1)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cpu.decode(pages, runs, together, start=0, rope=rope)
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(alone, together)


@KERNELS
@pytest.mark.parametrize("scale_type", ["e4m3", "float16"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_row_is_level_times_scale_times_width_plus_centroids(
    make_pages: MakePages, kernel: Callable[..., None], scale_type: str, bits: int
) -> None:
    levels = tuple(np.linspace(-1.3, 1.9, 2**bits).tolist())
    spec = CodecSpec(
        stages=2,
        centroids=7,
        bits=bits,
        levels=levels,
        group=6,
        scale_rule="absmax",
        scale_type="float16" if scale_type == "float16" else "e4m3",
        channel_widths=True,
        centroid_type="float16",
    )
    # 18 channels do not fill the last byte of 1 bit, and groups lie anywhere.
    groups = np.random.default_rng(0).permutation(18) % 3
    pages = make_pages(spec, head_dim=18, channel_groups=groups.astype(np.int32))
    pages.slot_of_page[:] = [2, 0, 1, 1, 0, 2]
    codes = torch.randint(2**bits, (6, 2, PAGE_SIZE, 18), dtype=torch.uint8)
    pages.codes.copy_(pack(codes, bits))
    pages.ids.copy_(torch.randint(5, pages.ids.shape))
    numbers = torch.randint(1, 0x7E, pages.scales.shape, dtype=torch.uint8)
    scales = numbers.view(torch.float8_e4m3fn).float()
    pages.scales.copy_(scales if scale_type == "float16" else numbers)

    out = torch.full((2, 6 * PAGE_SIZE, 18), torch.nan)
    entries = [(page, 0, 0, PAGE_SIZE) for page in range(6)]
    kernel(pages, as_runs(entries), out, start=0, rope=None)
    centroids, widths = pages.codebooks.gather(np.arange(3))
    for page, head, row in ((0, 0, 0), (1, 1, 15), (4, 0, 7), (5, 1, 3)):
        slot, ids = int(pages.slot_of_page[page]), pages.ids[page, head, :, row].long()
        level = torch.tensor(levels)[codes[page, head, row].long()]
        value = level * scales[page, head, row, groups] * widths[slot, head]
        for stage in range(2):
            value = value + centroids[slot, head, stage, ids[stage]]
        assert torch.equal(out[head, page * PAGE_SIZE + row], value)


@KERNELS
@CASES
def test_rotated_rows_have_their_own_positions(
    make_pages: MakePages,
    kernel: Callable[..., None],
    entries: list[tuple[int, int, int, int]],
) -> None:
    grid, pages, runs = make_grid(), filled(make_pages, PRESETS["q2"]), as_runs(entries)
    plain, out = torch.full((2, 2, runs.num_tokens, 64), torch.nan)
    kernel(pages, runs, plain, start=0, rope=None)
    kernel(pages, runs, out, start=0, rope=grid)
    expected = rotate(plain.transpose(0, 1), *grid.rows(runs.slots()[2])).transpose(0, 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_rounded_once(make_pages: MakePages, dtype: torch.dtype) -> None:
    grid, pages = make_grid(), filled(make_pages, PRESETS["q2"])
    runs = as_runs(RUNS["cut at both ends"])
    plain = torch.full((2, 34, 64), torch.nan)
    decode(pages, runs, plain, start=0, rope=None)
    out = torch.full((2, 34, 64), torch.nan).to(dtype)
    decode(pages, runs, out, start=0, rope=grid)
    rows = plain.transpose(0, 1).double()
    exact = rotate(rows, *grid.rows(runs.slots()[2])).transpose(0, 1)
    error = (out.double() - exact).abs()
    assert (error <= torch.finfo(dtype).eps / 2 * exact.abs() * 1.001 + 1e-7).all()


def test_a_row_decodes_to_the_same_bits_wherever_it_lies(
    make_pages: MakePages, spec: CodecSpec
) -> None:
    grid, pages = make_grid(), filled(make_pages, spec)
    runs = as_runs(RUNS["cut at both ends"])
    whole, parts = torch.full((2, 2, 34, 64), torch.nan)
    decode(pages, runs, whole, start=0, rope=grid)
    for start, stop in ((0, 1), (1, 20), (20, 34)):
        decode(pages, runs.cut(start, stop), parts, start=start, rope=grid)
    assert torch.equal(whole, parts)


def test_decoding_changes_nothing(make_pages: MakePages, spec: CodecSpec) -> None:
    pages = filled(make_pages, spec)
    tensors: list[Tensor] = [pages.codes, pages.ids, pages.scales, pages.codebooks.rows]
    before = [x.view(torch.uint8).clone() for x in tensors]
    decode(pages, as_runs(RUNS["a page"]), torch.empty(2, 16, 64), start=0, rope=make_grid())
    for x, old in zip(tensors, before, strict=True):
        assert torch.equal(x.view(torch.uint8), old)


@pytest.mark.parametrize(
    ("page_id", "first_token", "begin", "end"),
    [(6, 0, 0, 1), (-1, 0, 0, 1), (0, 0, 0, 17), (0, 0, -1, 1), (0, 0, 5, 4), (0, -9, 8, 10)],
)
def test_entries_outside_of_the_pages_are_stopped(
    make_pages: MakePages, page_id: int, first_token: int, begin: int, end: int
) -> None:
    pages = filled(make_pages, PRESETS["q2"])
    runs = as_runs([(page_id, first_token, begin, end)])
    with pytest.raises(AssertionError):
        decode(pages, runs, torch.empty(2, 100, 64), start=0, rope=None)


def test_pages_that_were_never_encoded_are_stopped(make_pages: MakePages) -> None:
    pages = make_pages(msgspec.structs.replace(PRESETS["q2"], centroids=4))
    with pytest.raises(AssertionError):
        decode(pages, as_runs([(0, 0, 0, 1)]), torch.empty(2, 100, 64), start=0, rope=None)


def test_a_buffer_without_room_is_stopped(make_pages: MakePages) -> None:
    pages = filled(make_pages, PRESETS["q2"])
    for out, start in ((torch.empty(2, 16, 64), 1), (torch.empty(2, 20, 64)[:, ::2], 0)):
        with pytest.raises(AssertionError):
            decode(pages, as_runs(RUNS["a page"]), out, start=start, rope=None)
