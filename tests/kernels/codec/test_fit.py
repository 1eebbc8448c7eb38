from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.errors import ConfigError, NonFiniteError
from qvg_engine.kernels import kmeans
from qvg_engine.kernels.codec import PRESETS, CodecSpec, CodedPages, encode_span, fit_codebook
from tests.kernels.codec.conftest import as_stored

MakePages = Callable[..., CodedPages]


def clustered(num_tokens: int = 120, *, spread: float = 0.1) -> Tensor:
    """Rows around 40 centres: fp32 [tokens, 2, 64]."""
    centres = 2 * torch.randn(40, 2, 64)
    return centres[torch.arange(num_tokens) % 40] + spread * torch.randn(num_tokens, 2, 64)


def fit(pages: CodedPages, rows: Tensor, **changes: Any) -> None:
    given = {"slot": 0, "num_centroids": 5, "seed": 3, "warm_from": None, "iterations": 4}
    fit_codebook(pages, rows, **(given | changes))


def residual_energy(pages: CodedPages, rows: Tensor, slot: int = 0) -> float:
    page_ids = np.arange(pages.num_pages)
    return float(encode_span(pages, page_ids, rows, slot=slot).residual_energy.sum())


def test_the_first_stage_is_k_means_rounded_once(make_pages: MakePages, spec: CodecSpec) -> None:
    pages = make_pages(msgspec.structs.replace(spec, stages=1), num_pages=8, books=0)
    rows = clustered()
    fit(pages, rows, slot=1)
    points = rows.transpose(0, 1).contiguous()
    initial = kmeans.initial_centroids(points, 5, seed=3)
    expected = kmeans.fit(points, initial, kmeans.KMeansSettings(iterations=4)).centroids
    stored = pages.codebooks.stage(1, 0)
    assert torch.equal(stored, as_stored(expected, spec))
    assert pages.codebooks.counts.tolist() == [0, 5, 0]
    books = pages.codebooks
    untouched = books.row_table[[0, 2]].ravel(), books.row_table[1, books.has_widths + 5 :]
    for rows_left in untouched:
        assert (books.rows[rows_left].view(torch.uint8) == 255).all()


def test_later_stages_are_fitted_to_what_the_stored_centroids_leave(
    make_pages: MakePages,
) -> None:
    spec = msgspec.structs.replace(PRESETS["qvg-pro"], stages=2, centroids=5)
    pages = make_pages(spec, num_pages=8, books=0)
    rows = clustered() + 30
    fit(pages, rows)
    first = pages.codebooks.stage(0, 0).float()
    points = rows.transpose(0, 1).contiguous()
    left = points - first[torch.arange(2)[:, None], kmeans.assign(points, first).ids.long()]
    second = pages.codebooks.stage(0, 1).float()
    ids = kmeans.assign(left, second).ids.long()
    means = torch.stack(
        [left[head][ids[head] == k].mean(dim=0) for head in range(2) for k in range(5)]
    )
    torch.testing.assert_close(second.flatten(0, 1), means, rtol=0.05, atol=0.05)
    # With unrounded centroids around 30, bf16 would leave an offset of up to 1/16.
    assert (left.mean(dim=1) - second[torch.arange(2)[:, None], ids].mean(dim=1)).abs().max() < 0.02


def test_every_stage_leaves_less(make_pages: MakePages) -> None:
    rows = clustered(spread=0.5)
    left = []
    for stages in range(4):
        spec = msgspec.structs.replace(PRESETS["q2"], stages=stages, centroids=5)
        pages = make_pages(spec, num_pages=8, books=0)
        fit(pages, rows)
        left.append(residual_energy(pages, rows))
    assert left == sorted(left, reverse=True)
    assert left[3] < 0.8 * left[1] < 0.8 * left[0]


@pytest.mark.parametrize("centroid_type", ["float16", "e4m3"])
def test_widths_are_the_root_mean_square_of_what_is_left(
    make_pages: MakePages, centroid_type: str
) -> None:
    spec = msgspec.structs.replace(PRESETS["q2"], stages=0, centroid_type=centroid_type)
    pages = make_pages(spec, books=0)
    rows = torch.randn(500, 2, 64) * torch.rand(2, 64).add(0.1)
    rows[:, 1, 5] = 0
    fit(pages, rows, slot=2)
    stored = pages.codebooks.widths(2)
    assert stored is not None
    power = rows.double().square().mean(dim=0)
    expected, of_head = power.sqrt(), power.mean(dim=1, keepdim=True).sqrt()
    expected[1, 5] = of_head[1, 0] / 64
    if centroid_type == "e4m3":
        expected /= of_head
    rounding = 2**-4 if centroid_type == "e4m3" else 2**-11
    torch.testing.assert_close(stored, expected.float(), rtol=rounding, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e6, 1e30])
def test_what_is_stored_is_finite_and_no_width_is_zero(
    make_pages: MakePages, spec: CodecSpec, scale: float
) -> None:
    pages = make_pages(spec, books=0)
    fit(pages, scale * torch.randn(30, 2, 64))
    for stage in range(spec.stages):
        assert pages.codebooks.stage(0, stage).isfinite().all()
    widths = pages.codebooks.widths(0)
    if widths is not None:
        assert (widths.float() > 0).all()
        assert widths.isfinite().all()


def test_the_same_rows_and_seed_give_the_same_codebook(
    make_pages: MakePages, spec: CodecSpec
) -> None:
    first, second = make_pages(spec, books=0), make_pages(spec, books=0)
    rows = clustered()
    fit(first, rows)
    fit(second, rows, slot=2)
    for stage in range(spec.stages):
        mine, other = first.codebooks.stage(0, stage), second.codebooks.stage(2, stage)
        assert torch.equal(mine, other)


def test_seeds_differ(make_pages: MakePages) -> None:
    pages = make_pages(PRESETS["q1"], books=0)
    rows = clustered()
    fit(pages, rows, slot=0, iterations=1)
    fit(pages, rows, slot=1, iterations=1, seed=4)
    assert not torch.equal(pages.codebooks.stage(0, 0), pages.codebooks.stage(1, 0))


@pytest.mark.parametrize("slot", [0, 1], ids=["in place", "beside"])
def test_a_warm_start_goes_on_from_the_old_codebook(make_pages: MakePages, slot: int) -> None:
    pages = make_pages(PRESETS["q1"], num_pages=8, books=0)
    rows = clustered()
    fit(pages, rows, num_centroids=40, iterations=30)
    settled = residual_energy(pages, rows)
    old = pages.codebooks.stage(0, 0).clone()
    fit(pages, rows, slot=slot, num_centroids=40, warm_from=0, iterations=1, seed=99)
    # Fitted means stay where they are, but for their rounding.
    torch.testing.assert_close(pages.codebooks.stage(slot, 0), old, rtol=2e-3, atol=1e-3)
    assert residual_energy(pages, rows, slot) < 1.05 * settled


@pytest.mark.parametrize("num_centroids", [3, 9])
def test_a_warm_start_may_change_the_number_of_centroids(
    make_pages: MakePages, num_centroids: int
) -> None:
    pages = make_pages(PRESETS["q1"], num_pages=8, books=0)
    rows = clustered()
    fit(pages, rows)
    fit(pages, rows, slot=1, num_centroids=num_centroids, warm_from=0)
    assert pages.codebooks.counts.tolist() == [5, num_centroids, 0]
    assert pages.codebooks.stage(1, 1).isfinite().all()
    more, fewer = residual_energy(pages, rows, 1), residual_energy(pages, rows, 0)
    assert (more < fewer) == (num_centroids > 5)


def test_rows_that_are_not_finite_are_refused_and_leave_no_trace(make_pages: MakePages) -> None:
    pages = make_pages(PRESETS["q2"], books=0)
    rows = clustered()
    rows[3, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^values of layer 2: "):
        fit(pages, rows, name="values of layer 2")
    assert pages.codebooks.counts.tolist() == [0, 0, 0]
    assert (pages.codebooks.rows.view(torch.uint8) == 255).all()


def test_wrong_iterations_are_refused_and_leave_no_trace(make_pages: MakePages) -> None:
    pages = make_pages(PRESETS["q2"], books=0)
    with pytest.raises(ConfigError, match="iterations is 0"):
        fit(pages, clustered(), iterations=0)
    assert pages.codebooks.counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("changes", [{"num_centroids": 0}, {"num_centroids": 10}, {"slot": 3}])
def test_what_does_not_exist_is_stopped(make_pages: MakePages, changes: dict[str, int]) -> None:
    pages = make_pages(msgspec.structs.replace(PRESETS["q2"], centroids=9), books=0)
    with pytest.raises(AssertionError):
        fit(pages, clustered(), **changes)


def test_a_codebook_has_fewer_centroids_than_rows(make_pages: MakePages) -> None:
    """Else nothing would be left of the rows, and no width would be right for later ones."""
    pages = make_pages(msgspec.structs.replace(PRESETS["q2"], centroids=64))
    rows = torch.randn(48, 2, 64)
    fit_codebook(pages, rows, slot=0, num_centroids=64, seed=0, warm_from=None, iterations=4)
    assert pages.codebooks.counts[0] == 24
    widths = pages.codebooks.widths(0)
    assert widths is not None
    assert widths.float().mean() > 0.4
