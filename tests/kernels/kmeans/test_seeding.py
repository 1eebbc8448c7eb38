from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine.errors import NonFiniteError
from qvg_engine.kernels.kmeans import cpu_seeding, initial_centroids, reference, seeding

MakePoints = Callable[..., Tensor]

KNOWN_PICKS = [[53, 33, 59, 56, 46, 6, 2, 36], [43, 15, 56, 53, 33, 30, 17, 35]]


def picked(centroids: Tensor, points: Tensor) -> list[list[int]]:
    """The index of each centroid among the points, the lowest where points are equal."""
    equal = (centroids[:, :, None] == points[:, None].float()).all(dim=-1)
    assert equal.any(dim=-1).all(), "a centroid is not a point"
    found: list[list[int]] = equal.int().argmax(dim=-1).tolist()
    return found


@pytest.mark.parametrize("shape", [(3, 1, 24), (2, 9, 24), (2, 700, 40), (1, 70, 27)])
def test_kernels_pick_the_same_points(
    make_points: MakePoints, kind: str, shape: tuple[int, int, int]
) -> None:
    points = make_points(kind, *shape)
    uniforms = np.random.default_rng(0).random((shape[0], 20))
    picks = cpu_seeding.pick(points, uniforms)
    assert torch.equal(picks, reference.pick(points, uniforms))
    assert 0 <= picks.min() <= picks.max() < shape[1]


def test_picks_are_the_same_on_every_machine() -> None:
    numbers = torch.arange(60 * 24).reshape(1, 60, 24) * 7919 % 1009
    points = torch.cat((numbers, numbers)).float()
    assert picked(initial_centroids(points, 8, seed=5), points) == KNOWN_PICKS


def test_the_seed_decides() -> None:
    points = torch.randn(2, 300, 24)
    seeds = (0, 1, -1, 2**64, 2**64 + 1)
    results = [initial_centroids(points, 16, seed=seed) for seed in seeds]
    for index, result in enumerate(results):
        assert torch.equal(result, initial_centroids(points, 16, seed=seeds[index]))
        assert not any(torch.equal(result, other) for other in results[:index])


def test_a_head_depends_on_its_number_and_on_no_other_head() -> None:
    points = torch.randn(5, 100, 24)
    points[1] = points[0]
    centroids = initial_centroids(points, 8, seed=3)
    assert torch.equal(initial_centroids(points[:2], 8, seed=3), centroids[:2])
    assert not torch.equal(centroids[0], centroids[1])


def test_the_chance_of_a_point_is_its_squared_distance() -> None:
    num_heads = 4000
    line = torch.tensor([0.0, 1.0, 4.0])[None, :, None].expand(num_heads, -1, 2)
    picks = np.array(picked(initial_centroids(line, 2, seed=0), line))
    first = np.bincount(picks[:, 0], minlength=3) / num_heads
    # Four standard deviations.
    assert np.abs(first - 1 / 3).max() < 4 * np.sqrt(2 / 9 / num_heads)
    for start, chances in ((0, [0, 1 / 17, 16 / 17]), (1, [1 / 10, 0, 9 / 10])):
        second = picks[picks[:, 0] == start, 1]
        parts = np.bincount(second, minlength=3) / len(second)
        assert parts[start] == 0
        assert np.abs(parts - chances).max() < 4 * np.sqrt(0.09 / len(second))


def test_separate_clusters_get_a_centroid_each() -> None:
    centres = 100 * torch.randn(3, 12, 40)
    points = centres.repeat_interleave(50, dim=1) + 0.01 * torch.randn(3, 600, 40)
    for head in picked(initial_centroids(points, 12, seed=0), points):
        assert sorted(index // 50 for index in head) == list(range(12))


@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e36])
def test_no_point_is_picked_twice_while_another_is_left(scale: float) -> None:
    points = scale * torch.randn(2, 40, 24)
    for head in picked(initial_centroids(points, 40, seed=0), points):
        assert sorted(head) == list(range(40))


def test_scale_does_not_matter(make_points: MakePoints, kind: str) -> None:
    points = make_points(kind, 2, 200, 24)
    for factor in (2.0**-3, 2.0**2):
        scaled = initial_centroids(points * factor, 10, seed=1)
        assert torch.equal(scaled, initial_centroids(points, 10, seed=1) * factor)


@pytest.mark.parametrize("num_tokens", [1, 7, 100])
def test_points_are_repeated_where_there_are_too_few(num_tokens: int) -> None:
    distinct = torch.randn(2, min(num_tokens, 6), 24)
    points = distinct[:, torch.arange(num_tokens) % distinct.shape[1]]
    for head in picked(initial_centroids(points, 30, seed=0), points):
        assert set(head) == set(range(distinct.shape[1]))
        assert sorted(head[: distinct.shape[1]]) == list(range(distinct.shape[1]))


def test_of_many_tokens_evenly_spaced_ones_are_candidates() -> None:
    points = torch.randn(1, 5000, 24)
    candidates = set((torch.arange(2048) * 5000 // 2048).tolist())
    picks = picked(initial_centroids(points, 128, seed=0), points)[0]
    assert set(picks) <= candidates
    assert max(picks) > 4000
    wide = picked(initial_centroids(points[:, :2300], 144, seed=0), points)[0]
    assert not set(wide) <= set((torch.arange(2048) * 2300 // 2048).tolist())


def test_narrow_and_strided_points_count_as_their_fp32_values() -> None:
    points = torch.randn(100, 3, 24).bfloat16().transpose(0, 1)
    expected = initial_centroids(points.float().contiguous(), 8, seed=0)
    centroids = initial_centroids(points, 8, seed=0)
    assert torch.equal(centroids, expected)
    assert centroids.dtype == torch.float32


def test_what_is_not_finite_is_refused_by_name() -> None:
    points = torch.randn(2, 5000, 8)
    # Not among the candidates.
    points[1, 1, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^values of layer 0: 1 of 80,000 values"):
        initial_centroids(points, 8, seed=0, name="values of layer 0")


def test_what_was_checked_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(2, 40, 24)
    expected = initial_centroids(points, 8, seed=0)

    def refuse(x: Tensor, name: str) -> None:
        raise NonFiniteError(name)

    monkeypatch.setattr(seeding, "require_finite", refuse)
    assert torch.equal(initial_centroids(points, 8, seed=0, checked=True), expected)
    with pytest.raises(NonFiniteError):
        initial_centroids(points, 8, seed=0)
