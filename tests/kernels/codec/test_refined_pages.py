"""Pages with a second code: both kernels against the definition, and each other."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.errors import NonFiniteError
from qvg_engine.kernels import threads
from qvg_engine.kernels.codec import (
    PRESETS,
    CodecSpec,
    CodedPages,
    Refinement,
    cpu,
    decode,
    encode_span,
    fit_codebook,
    half_split_groups,
    reference,
)
from qvg_engine.kernels.codec.e4m3 import from_e4m3
from qvg_engine.kernels.codec.packing import unpack
from qvg_engine.kernels.codec.trellis import level_indices
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from tests.kernels.codec.conftest import check_decode_bits, decoded
from tests.kernels.conftest import as_runs

MakePages = Callable[..., CodedPages]
MakeRows = Callable[..., Tensor]

PAGE_SIZE = 16
# Six pages, two of each of three codebooks; four of them are refined.
PAGE_OF = np.array([2, -1, 0, 4, -1, 1], np.int32)
# (page, first token, begin, end): refined and other pages, whole and cut, one of them twice.
ENTRIES = [
    (2, 0, 7, 16),
    (1, 16, 0, 16),
    (5, 32, 0, 16),
    (0, 48, 3, 4),
    (4, 64, 2, 9),
    (2, 80, 0, 5),
]
KERNELS = pytest.mark.parametrize("kernel", [cpu.decode, reference.decode], ids=["cpu", "ref"])
IS_ROTATED = pytest.mark.parametrize("is_rotated", [False, True], ids=["plain", "rotated"])


def make_grid(head_dim: int) -> RopeGrid:
    return RopeGrid(RopeTables(head_dim=head_dim), height=5, width=8)


def refined(
    make_pages: MakePages, spec: CodecSpec, head_dim: int = 64, page_size: int = PAGE_SIZE
) -> CodedPages:
    """Pages as `PAGE_OF` says, of rows in half-split order."""
    spec = spec.for_head_dim(head_dim)
    pages = make_pages(
        spec,
        head_dim=head_dim,
        page_size=page_size,
        channel_groups=half_split_groups(head_dim, spec.group),
        refinement_pages=5,
    )
    for slot, page_ids in enumerate(([3, 0], [4, 1], [2, 5])):
        rows = 2 * torch.randn(2 * page_size, 2, head_dim)
        encode_span(pages, np.array(page_ids), rows, slot=slot, refined=PAGE_OF[page_ids])
    refinement_of(pages).page_of[:] = PAGE_OF
    return pages


def refinement_of(pages: CodedPages) -> Refinement:
    assert pages.refinement is not None
    return pages.refinement


def copy_of(pages: CodedPages) -> CodedPages:
    """The same codebooks, and pages of their own."""
    old = refinement_of(pages)
    return replace(
        pages,
        codes=pages.codes.clone(),
        ids=pages.ids.clone(),
        scales=pages.scales.clone(),
        slot_of_page=pages.slot_of_page.copy(),
        refinement=replace(
            old, codes=old.codes.clone(), scales=old.scales.clone(), page_of=old.page_of.copy()
        ),
    )


def payload(pages: CodedPages) -> list[Tensor]:
    """Every byte of the pages, those of the refinement last."""
    refinement = refinement_of(pages)
    tensors = (pages.codes, pages.ids, pages.scales, refinement.codes, refinement.scales)
    return [x.view(torch.uint8) for x in tensors]


@IS_ROTATED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_decode_to_the_same_bits(
    make_pages: MakePages, spec: CodecSpec, dtype: torch.dtype, is_rotated: bool
) -> None:
    rope = make_grid(64) if is_rotated else None
    pages, runs = refined(make_pages, spec), as_runs(ENTRIES)
    check_decode_bits(pages, runs, dtype=dtype, rope=rope)


@pytest.mark.parametrize(
    ("head_dim", "page_size"), [(8, 16), (24, 5), (56, 7), (40, 33), (128, 16), (192, 3)]
)
@pytest.mark.parametrize("name", ["qvg", "q2", "q1", "no stages", "plain 4"])
def test_kernels_store_and_decode_heads_and_pages_of_any_size(
    make_pages: MakePages,
    all_specs: dict[str, CodecSpec],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    head_dim: int,
    page_size: int,
) -> None:
    pages = refined(make_pages, all_specs[name], head_dim, page_size)
    expected = copy_of(pages)
    # All but one slot of the last page.
    rows = torch.randn(4 * page_size - 1, 2, head_dim)
    page_ids, pages_2 = np.array([5, 4, 0, 1]), np.array([3, -1, 0, 1], np.int32)
    encode_span(pages, page_ids, rows, slot=1, refined=pages_2)
    refinement_of(pages).page_of[page_ids] = pages_2
    runs = as_runs([(page, 0, 0, page_size) for page in (0, 1, 4, 5)])
    out, other = torch.full((2, 2, runs.num_tokens, head_dim), torch.nan)
    decode(pages, runs, out, start=0, rope=make_grid(head_dim))

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "supports", lambda *tensors: False)
        encode_span(expected, page_ids, rows, slot=1, refined=pages_2)
        refinement_of(expected).page_of[page_ids] = pages_2
        decode(expected, runs, other, start=0, rope=make_grid(head_dim))
    for mine, theirs in zip(payload(pages), payload(expected), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(out, other)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ["qvg", "q2"])
def test_kernels_store_rows_of_every_kind_alike(
    make_pages: MakePages,
    make_rows: MakeRows,
    all_specs: dict[str, CodecSpec],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
) -> None:
    pages = refined(make_pages, all_specs[name])
    expected, rows = copy_of(pages), make_rows(kind, 45, 2, 64)
    page_ids, pages_2 = np.array([1, 0, 4]), np.array([3, 2, 0], np.int32)
    encode_span(pages, page_ids, rows, slot=2, refined=pages_2)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "supports", lambda *tensors: False)
        encode_span(expected, page_ids, rows, slot=2, refined=pages_2)
    for mine, theirs in zip(payload(pages), payload(expected), strict=True):
        assert torch.equal(mine, theirs)
    refinement_of(pages).page_of[page_ids] = pages_2
    assert decoded(pages, [1, 0, 4], 45).isfinite().all()


@KERNELS
@pytest.mark.parametrize("has_widths", [False, True])
def test_a_refined_row_is_one_plus_level_times_scale_times_width(
    make_pages: MakePages, kernel: Callable[..., None], has_widths: bool
) -> None:
    spec = msgspec.structs.replace(PRESETS["q1"], centroids=9, channel_widths=has_widths)
    pages = refined(make_pages, spec, head_dim=128)
    refinement = refinement_of(pages)
    refinement.codes.random_(0, 256)
    refinement.scales.copy_(torch.randint(1, 0x7E, refinement.scales.shape))
    out, without = torch.full((2, 2, 6 * PAGE_SIZE, 128), torch.nan)
    runs = as_runs([(page, 0, 0, PAGE_SIZE) for page in range(6)])
    kernel(pages, runs, out, start=0, rope=None)
    kernel(replace(pages, refinement=None), runs, without, start=0, rope=None)
    levels = torch.tensor((-2.1875, -1.375, -0.75, -0.25, 0.25, 0.75, 1.375, 2.1875))
    # Pairs of channels that RoPE turns share a scale, as in the published order.
    groups = np.arange(128) % 64 // 32
    for page, head, row in ((0, 0, 0), (2, 1, 15), (3, 0, 7), (5, 1, 3)):
        place = PAGE_OF[page], head, row
        codes = unpack(refinement.codes[place], 2, 128)
        change = levels[level_indices(codes, 2)] * from_e4m3(refinement.scales[place])[groups]
        if has_widths:
            widths = pages.codebooks.widths(int(pages.slot_of_page[page]))
            assert widths is not None
            change = change * widths[head].float()
        at = head, page * PAGE_SIZE + row
        assert torch.equal(out[at], without[at] + change)


@IS_ROTATED
def test_other_pages_decode_to_the_bits_of_pages_without_a_refinement(
    make_pages: MakePages, spec: CodecSpec, is_rotated: bool
) -> None:
    rope = make_grid(64) if is_rotated else None
    pages, runs = refined(make_pages, spec), as_runs(ENTRIES)
    out, without = torch.full((2, 2, runs.num_tokens, 64), torch.nan)
    decode(pages, runs, out, start=0, rope=rope)
    decode(replace(pages, refinement=None), runs, without, start=0, rope=rope)
    has_one = torch.from_numpy(PAGE_OF[runs.slots()[0]] >= 0)
    assert torch.equal(out[:, ~has_one], without[:, ~has_one])
    assert (out != without)[:, has_one].any(dim=-1).all()
    # The owner of the array takes a refinement away.
    refinement_of(pages).page_of[:] = -1
    decode(pages, runs, out, start=0, rope=rope)
    assert torch.equal(out, without)


@IS_ROTATED
def test_threads_decode_to_the_same_bits(
    make_pages: MakePages, monkeypatch: pytest.MonkeyPatch, is_rotated: bool
) -> None:
    pages, runs = refined(make_pages, PRESETS["q2"]), as_runs(ENTRIES)
    rope = make_grid(64) if is_rotated else None
    alone, together = torch.full((2, 2, runs.num_tokens, 64), torch.nan)
    cpu.decode(pages, runs, alone, start=0, rope=rope)
    monkeypatch.setattr(threads, "_LEAST_WORK", 1)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cpu.decode(pages, runs, together, start=0, rope=rope)
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("size", "spread", "decibels"), [(1, 0, 9.9), (0.1, 0.5, 9.2)])
def test_a_refinement_takes_off_the_error_what_two_bits_can(
    make_pages: MakePages, name: str, size: float, spread: float, decibels: float
) -> None:
    """Normal rows, also with channels of unequal widths."""
    rows = size * torch.randn(1200, 2, 128) * torch.exp(spread * torch.randn(2, 128))
    spec = msgspec.structs.replace(PRESETS[name], centroids=4)
    sizes = {"num_pages": 1, "page_size": 1200, "head_dim": 128, "num_slots": 1, "books": 1}
    pages = make_pages(spec, **sizes, refinement_pages=1)
    fit_codebook(pages, rows, slot=0, num_centroids=4, seed=0, warm_from=None, iterations=2)
    figures = encode_span(pages, np.array([0]), rows, slot=0, refined=np.array([0], np.int32))
    without = (rows - decoded(pages, [0], 1200)).double().square().sum()
    # Figures are those of the page's own codes.
    np.testing.assert_allclose(figures.error_energy.sum(), without, rtol=1e-4)
    refinement_of(pages).page_of[0] = 0
    error = (rows - decoded(pages, [0], 1200)).double().square().sum()
    assert 10 * torch.log10(without / error) > decibels


def test_only_what_is_named_is_written(make_pages: MakePages, spec: CodecSpec) -> None:
    pages = refined(make_pages, spec)
    refinement_of(pages).codes.fill_(255)
    refinement_of(pages).scales.fill_(255)
    without, before = copy_of(pages), payload(copy_of(pages))
    rows, page_ids = torch.randn(41, 2, 64), np.array([0, 1, 3, 2])
    encode_span(without, page_ids, rows, slot=0)
    for mine, old in zip(payload(without)[3:], before[3:], strict=True):
        assert torch.equal(mine, old)
    # The last page gets no row; the one before it has nine.
    encode_span(pages, page_ids, rows, slot=0, refined=np.array([4, -1, 1, 2], np.int32))
    for mine, other in zip(payload(pages)[:3], payload(without)[:3], strict=True):
        assert torch.equal(mine, other)
    for mine, old in zip(payload(pages)[3:], before[3:], strict=True):
        assert torch.equal(mine[[0, 2, 3]], old[[0, 2, 3]])
        assert torch.equal(mine[1, :, 9:], old[1, :, 9:])
    scales = refinement_of(pages).scales
    assert (scales[4] != 255).all()
    assert (scales[1, :, :9] != 255).all()
    assert (refinement_of(pages).page_of == PAGE_OF).all()


def test_what_pages_held_before_makes_no_difference(make_pages: MakePages) -> None:
    """A page's old refinement, and one without any."""
    pages = refined(make_pages, PRESETS["q2"])
    other, rows = copy_of(pages), torch.randn(16, 2, 64)
    refinement_of(other).page_of[:] = -1
    for x in (pages, other):
        encode_span(x, np.array([5]), rows, slot=0, refined=np.array([1], np.int32))
    assert PAGE_OF[5] == 1
    for mine, theirs in zip(payload(pages), payload(other), strict=True):
        assert torch.equal(mine, theirs)


def test_no_rows_are_no_error(make_pages: MakePages) -> None:
    pages = refined(make_pages, PRESETS["q2"])
    before = payload(copy_of(pages))
    nothing = torch.empty(0, 2, 64)
    encode_span(pages, np.array([3]), nothing, slot=0, refined=np.array([0], np.int32))
    for mine, old in zip(payload(pages), before, strict=True):
        assert torch.equal(mine, old)


def test_rows_that_are_not_finite_leave_no_trace(make_pages: MakePages) -> None:
    pages = refined(make_pages, PRESETS["q2"])
    before, rows = payload(copy_of(pages)), torch.randn(9, 2, 64)
    rows[4, 1, 63] = torch.nan
    with pytest.raises(NonFiniteError, match="keys: 1 of 1,152"):
        encode_span(pages, np.array([1]), rows, slot=0, refined=np.array([3], np.int32))
    for mine, old in zip(payload(pages), before, strict=True):
        assert torch.equal(mine, old)


@pytest.mark.parametrize("named", [[5, 0], [-2, 0], [3, 3], [0], [0, 1, 2]])
def test_refinement_pages_that_do_not_exist_are_stopped(
    make_pages: MakePages, named: list[int]
) -> None:
    pages = refined(make_pages, PRESETS["q2"])
    before = payload(copy_of(pages))
    numbers = np.array(named, np.int32)
    with pytest.raises(AssertionError):
        encode_span(pages, np.array([0, 1]), torch.randn(32, 2, 64), slot=0, refined=numbers)
    for mine, old in zip(payload(pages), before, strict=True):
        assert torch.equal(mine, old)


def test_pages_without_a_refinement_take_none(make_pages: MakePages) -> None:
    pages, rows = make_pages(PRESETS["q2"]), torch.randn(3, 2, 64)
    nothing = np.array([-1], np.int32)
    encode_span(pages, np.array([0]), rows, slot=0, refined=nothing)
    with pytest.raises(AssertionError):
        encode_span(pages, np.array([0]), rows, slot=0, refined=nothing + 1)


def test_pages_that_name_no_refinement_page_are_stopped(make_pages: MakePages) -> None:
    pages = refined(make_pages, PRESETS["q2"])
    refinement_of(pages).page_of[1] = 5
    with pytest.raises(AssertionError):
        decoded(pages, [1], 16)
