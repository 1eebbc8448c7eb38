from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.errors import ConfigError, NonFiniteError, QvgError
from qvg_engine.kernels.codec import (
    PRESETS,
    CodecSpec,
    CodedPages,
    cpu_store,
    encode_span,
    fit_codebook,
    half_split_groups,
    reference,
)
from qvg_engine.kernels.codec.e4m3 import from_e4m3
from qvg_engine.kernels.codec.encode import assign_stages
from qvg_engine.kernels.codec.residual import to_points
from tests.kernels.codec.conftest import decoded

SIXTEEN = tuple(
    x / 64 for x in (-86, -65, -51, -40, -30, -21, -12, -4, 4, 12, 21, 30, 40, 51, 65, 86)
)
"""Those of Lloyd and Max for normally distributed numbers."""

MakePages = Callable[..., CodedPages]
MakeRows = Callable[..., Tensor]


def copy_of(pages: CodedPages) -> CodedPages:
    """The same codebooks, and pages of their own."""
    return replace(
        pages,
        codes=pages.codes.clone(),
        ids=pages.ids.clone(),
        scales=pages.scales.clone(),
        slot_of_page=pages.slot_of_page.copy(),
    )


def payload(pages: CodedPages) -> list[Tensor]:
    """Every byte of the pages."""
    return [x.view(torch.uint8) for x in (pages.codes, pages.ids, pages.scales)]


@pytest.mark.parametrize("is_half_split", [False, True], ids=["consecutive", "half-split"])
def test_kernels_store_the_same_bits(
    make_pages: MakePages, make_rows: MakeRows, kind: str, spec: CodecSpec, is_half_split: bool
) -> None:
    groups = half_split_groups(64, spec.group) if is_half_split else None
    pages = make_pages(spec, channel_groups=groups, page_size=48)
    # More than a block of the CPU kernel, and a part of the second page.
    rows = make_rows(kind, 83, 2, 64)
    rows[7] = 0
    ids, (residual, _), _ = assign_stages(pages, to_points(rows, "keys"), 2)
    expected = copy_of(pages)
    page_ids = np.array([4, 1])
    error = cpu_store.store(pages, page_ids, residual, ids, slot=2)
    expected_error = reference.store(expected, page_ids, residual, ids, slot=2)
    for mine, other in zip(payload(pages), payload(expected), strict=True):
        assert torch.equal(mine, other)
    np.testing.assert_allclose(error, expected_error, rtol=1e-9)


@pytest.mark.parametrize("head_dim", [1, 5, 8, 12, 27, 40])
def test_heads_of_any_size_are_stored_and_restored(
    make_pages: MakePages, spec: CodecSpec, head_dim: int
) -> None:
    small = msgspec.structs.replace(spec, group=head_dim if head_dim % 3 else 3)
    if small.trellis and head_dim * small.bits % 8:
        with pytest.raises(ConfigError, match=f"{head_dim} codes of {small.bits} bits must fill"):
            small.for_head_dim(head_dim)
        return
    pages = make_pages(small, head_dim=head_dim)
    points = to_points(torch.randn(21, 2, head_dim), "keys")
    ids, (residual, _), _ = assign_stages(pages, points, 0)
    expected = copy_of(pages)
    cpu_store.store(pages, np.array([3, 2]), residual, ids, slot=0)
    reference.store(expected, np.array([3, 2]), residual, ids, slot=0)
    for mine, other in zip(payload(pages), payload(expected), strict=True):
        assert torch.equal(mine, other)
    pages.slot_of_page[:] = 0
    left = points.values - decoded(pages, [3, 2], 21).transpose(0, 1)
    assert left.square().mean() < residual.square().mean()


@pytest.mark.parametrize("store", [cpu_store.store, reference.store], ids=["cpu", "ref"])
def test_slots_without_a_row_keep_what_they_held(
    make_pages: MakePages, spec: CodecSpec, store: Callable[..., Any]
) -> None:
    pages = make_pages(spec)
    before = copy_of(pages)
    points = to_points(torch.randn(19, 2, 64), "keys")
    ids, (residual, _), _ = assign_stages(pages, points, 0)
    store(pages, np.array([5, 2]), residual, ids, slot=0)
    assert torch.equal(pages.codes[2, :, 3:], before.codes[2, :, 3:])
    assert torch.equal(pages.ids[2, :, :, 3:], before.ids[2, :, :, 3:])
    for mine, other in zip(payload(pages), payload(before), strict=True):
        assert torch.equal(mine[[0, 1, 3, 4]], other[[0, 1, 3, 4]])
    assert pages.scales[2, :, 3:].view(torch.uint8).eq(255).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_figures_are_those_of_the_decoded_rows(
    make_pages: MakePages, spec: CodecSpec, dtype: torch.dtype
) -> None:
    pages = make_pages(spec)
    rows = (2 * torch.randn(37, 2, 64)).to(dtype)
    figures = encode_span(pages, np.array([0, 3, 1, 2]), rows, slot=1)
    exact = rows.double()
    left = exact - decoded(pages, [0, 3, 1], 37).double()
    np.testing.assert_allclose(figures.energy, exact.square().sum(dim=(0, 2)), rtol=1e-9)
    np.testing.assert_allclose(figures.error_energy, left.square().sum(dim=(0, 2)), rtol=1e-4)
    ids = torch.cat([pages.ids[0], pages.ids[3], pages.ids[1]], dim=-1)[..., :37].long()
    residual = exact.clone()
    for stage in range(spec.stages):
        for head in range(2):
            centroids = pages.codebooks.stage(1, stage)[head].double()
            residual[:, head] -= centroids[ids[head, stage]]
            counts = ids[head, stage].bincount(minlength=spec.centroids)
            assert figures.counts[head, stage].tolist() == counts.tolist()
    np.testing.assert_allclose(
        figures.residual_energy, residual.square().sum(dim=(0, 2)), rtol=1e-4
    )
    assert figures.counts.shape == (2, spec.stages, spec.centroids)
    assert figures.counts.dtype == np.int64
    # The fourth page got no row.
    assert pages.slot_of_page.tolist() == [1, 1, -1, 1, -1, -1]


def test_no_rows_are_no_error(make_pages: MakePages, spec: CodecSpec) -> None:
    pages = make_pages(spec)
    before = copy_of(pages)
    figures = encode_span(pages, np.array([], dtype=np.int32), torch.empty(0, 2, 64), slot=0)
    assert figures.energy.tolist() == figures.error_energy.tolist() == [0, 0]
    assert figures.counts.shape == (2, spec.stages, spec.centroids)
    assert not figures.counts.any()
    for mine, other in zip(payload(pages), payload(before), strict=True):
        assert torch.equal(mine, other)
    assert (pages.slot_of_page == -1).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_refused_and_leave_no_trace(
    make_pages: MakePages, spec: CodecSpec, value: float
) -> None:
    pages = make_pages(spec)
    before = copy_of(pages)
    rows = torch.randn(9, 2, 64)
    rows[4, 1, 63] = value
    with pytest.raises(
        NonFiniteError, match=r"^layer 3 values: 1 of 1,152 .* in heads 1"
    ) as caught:
        encode_span(pages, np.array([1]), rows, slot=0, name="layer 3 values")
    assert isinstance(caught.value, QvgError)
    assert isinstance(caught.value, ValueError)
    for mine, other in zip(payload(pages), payload(before), strict=True):
        assert torch.equal(mine, other)
    assert (pages.slot_of_page == -1).all()


def test_rows_of_every_kind_decode_to_finite_numbers(
    make_pages: MakePages, make_rows: MakeRows, kind: str, spec: CodecSpec
) -> None:
    rows = make_rows(kind, 40, 2, 64)
    pages = make_pages(spec)
    fit_codebook(
        pages,
        rows,
        slot=0,
        num_centroids=9 if spec.centroids > 8 else 5,
        seed=0,
        warm_from=None,
        iterations=2,
    )
    encode_span(pages, np.array([0, 1, 2]), rows, slot=0)
    assert decoded(pages, [0, 1, 2], 40).isfinite().all()


@pytest.mark.parametrize("levels", [(-1.0, 1.0), (-0.625, -0.1875, 0.1875, 0.625), SIXTEEN])
@pytest.mark.parametrize(
    "draw",
    [
        torch.distributions.Normal(0, 1),
        torch.distributions.Laplace(0, 1),
        torch.distributions.StudentT(3),
    ],
    ids=["normal", "Laplace", "t"],
)
def test_searched_scales_are_close_to_the_best_of_all(
    make_pages: MakePages,
    levels: tuple[float, ...],
    draw: torch.distributions.Distribution,
) -> None:
    spec = msgspec.structs.replace(
        PRESETS["q4"],
        stages=0,
        channel_widths=False,
        trellis=False,
        bits={2: 1, 4: 2, 16: 4}[len(levels)],
        levels=levels,
    )
    pages = make_pages(spec, num_heads=1, page_size=200, num_pages=1)
    rows = draw.sample((200, 1, 64))
    error = encode_span(pages, np.array([0]), rows, slot=0).error_energy[0]
    numbers = torch.tensor(spec.levels)
    scales = from_e4m3(torch.arange(1, 127, dtype=torch.uint8))
    errors = torch.stack(
        [(rows[:, :, :, None] - numbers * x).abs().amin(dim=-1).square().sum(-1) for x in scales]
    )
    decibels = 10 * np.log10(error / float(errors.amin(dim=0).double().sum()))
    assert decibels < (0.35 if levels == SIXTEEN else 0.03)


def test_four_levels_beat_the_published_three(make_pages: MakePages) -> None:
    """Normal residuals whose channels have unequal widths, with 2 bits and groups of 64."""
    rows = torch.randn(2000, 2, 128) * torch.exp(0.8 * torch.randn(2, 128))
    errors = []
    for name in ("qvg", "q2"):
        pages = make_pages(
            msgspec.structs.replace(PRESETS[name], centroids=1),
            num_pages=1,
            page_size=2000,
            head_dim=128,
            num_slots=1,
            books=1,
        )
        fit_codebook(pages, rows, slot=0, num_centroids=1, seed=0, warm_from=None, iterations=1)
        figures = encode_span(pages, np.array([0]), rows, slot=0)
        errors.append(figures.error_energy.sum() / figures.residual_energy.sum())
    assert 10 * np.log10(errors[0] / errors[1]) > 5


def test_a_row_is_coded_alike_wherever_it_lies(make_pages: MakePages, spec: CodecSpec) -> None:
    pages = make_pages(spec)
    rows = torch.randn(90, 2, 64)
    encode_span(pages, np.array([0, 1, 2, 3, 4, 5]), rows, slot=1)
    alone = make_pages(spec)
    alone = replace(alone, codebooks=pages.codebooks)
    encode_span(alone, np.array([3]), rows[75:76], slot=1)
    assert torch.equal(decoded(alone, [3], 1), decoded(pages, [0, 1, 2, 3, 4, 5], 90)[75:76])


@pytest.mark.parametrize(
    ("page_ids", "shape", "slot"),
    [
        ([0, 6], (17, 2, 64), 0),
        ([0, -1], (17, 2, 64), 0),
        ([0], (17, 2, 64), 0),
        ([0, 1], (17, 1, 64), 0),
        ([0, 1], (17, 2, 32), 0),
        ([0, 1], (17, 2, 64), 3),
        ([0, 1], (17, 2, 64), -1),
    ],
)
def test_what_does_not_exist_is_stopped(
    make_pages: MakePages, page_ids: list[int], shape: tuple[int, ...], slot: int
) -> None:
    pages = make_pages(PRESETS["q2"])
    with pytest.raises(AssertionError):
        encode_span(pages, np.array(page_ids), torch.randn(shape), slot=slot)


def test_an_empty_codebook_is_stopped(make_pages: MakePages) -> None:
    pages = make_pages(PRESETS["q2"], books=1)
    with pytest.raises(AssertionError):
        encode_span(pages, np.array([0]), torch.randn(3, 2, 64), slot=1)
