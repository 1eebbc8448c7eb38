"""Both kernels against all distances in fp64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qvg_engine.errors import NonFiniteError, QvgError
from qvg_engine.kernels.kmeans import assign, cpu, lloyd, reference

MakePoints = Callable[..., Tensor]

# Heads, tokens, head_dim, centroids.
SHAPES = {
    "one point": (1, 1, 24, 1),
    "more centroids than points": (2, 5, 40, 17),
    "one centroid": (2, 70, 24, 1),
    "two blocks": (2, 600, 40, 256),
    "head_dim 128": (1, 331, 128, 33),
}
KERNELS = pytest.mark.parametrize("kernel", [cpu.assign, reference.assign], ids=["cpu", "ref"])


def all_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances, fp64 [heads, tokens, centroids]."""
    return torch.stack(
        [
            (points.double() - centroids[:, k, None].double()).square().sum(dim=-1)
            for k in range(centroids.shape[1])
        ],
        dim=-1,
    )


def some_of(points: Tensor, count: int) -> Tensor:
    """Centroids among the points: some exactly on them, some between, some twice."""
    picks = torch.randint(points.shape[1], (2, count))
    mixed = (points[:, picks[0]] / 2 + points[:, picks[1]] / 2).contiguous()
    mixed[:, ::3] = points[:, picks[0, ::3]]
    return mixed


@KERNELS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_centroid_is_nearer(
    make_points: MakePoints,
    kind: str,
    shape: tuple[int, int, int, int],
    kernel: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    points = make_points(kind, *shape[:3])
    centroids = some_of(points, shape[3])
    ids, distances = kernel(points, centroids)
    exact = all_distances(points, centroids)
    chosen = exact.gather(2, ids.long()[:, :, None])[:, :, 0]
    assert ids.dtype == torch.uint8
    assert (chosen <= exact.amin(dim=2) * (1 + 1e-13)).all()
    torch.testing.assert_close(distances, chosen.float(), rtol=2**-22, atol=0)


@KERNELS
@pytest.mark.parametrize("kind", ["whole numbers", "duplicates", "constant", "zero"])
def test_ties_go_to_the_lowest_id(
    make_points: MakePoints, kind: str, kernel: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    points = make_points(kind, 2, 300, 24)
    centroids = points[:, :90].clone()
    exact = all_distances(points, centroids)
    lowest = (exact == exact.amin(dim=2, keepdim=True)).int().argmax(dim=2)
    assert torch.equal(kernel(points, centroids)[0].long(), lowest)


@KERNELS
def test_every_id_of_a_byte_is_used(kernel: Callable[..., tuple[Tensor, Tensor]]) -> None:
    points = torch.randn(1, 256, 24)
    ids, distances = kernel(points, points.flip(1))
    assert ids[0].tolist() == list(range(255, -1, -1))
    assert not distances.any()


def test_tokens_do_not_depend_on_each_other(make_points: MakePoints, kind: str) -> None:
    points = make_points(kind, 2, 333, 40)
    centroids = some_of(points, 21)
    whole = cpu.assign(points, centroids)
    # Other blocks, another mean and another scale.
    for part in (slice(0, 1), slice(7, 40), slice(300, 333)):
        alone = cpu.assign(points[:, part].contiguous(), centroids)
        for one, other in zip(whole, alone, strict=True):
            assert torch.equal(one[:, part], other)


@pytest.mark.parametrize("num_centroids", [1, 15, 16, 17, 31, 32, 33, 48, 49, 256])
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 15, 16, 17, 65])
def test_every_number_of_tokens_and_centroids_is_right(num_tokens: int, num_centroids: int) -> None:
    points, centroids = torch.randn(3, num_tokens, 24), torch.randn(3, num_centroids, 24)
    for one, other in zip(
        cpu.assign(points, centroids), reference.assign(points, centroids), strict=True
    ):
        assert torch.equal(one, other)


def test_points_that_were_checked_give_the_same(make_points: MakePoints, kind: str) -> None:
    points = make_points(kind, 2, 70, 24)
    centroids = some_of(points, 9)
    expected = assign(points, centroids)
    for one, other in zip(assign(points, centroids, checked=True), expected, strict=True):
        assert torch.equal(one, other)


def test_what_was_checked_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: Tensor, name: str) -> None:
        raise NonFiniteError(name)

    monkeypatch.setattr(lloyd, "require_finite", refuse)
    points = torch.randn(2, 9, 24)
    assign(points, points, checked=True)
    with pytest.raises(NonFiniteError):
        assign(points, points)


def test_centroids_may_be_far_from_all_points() -> None:
    points = torch.randn(1, 40, 24)
    centroids = torch.full((1, 3, 24), 1e30)
    centroids[0, 1] = -1e29
    ids, distances = assign(points, centroids)
    assert (ids == 1).all()
    assert distances.isinf().all()


def test_narrow_and_strided_points_count_as_their_fp32_values() -> None:
    points = torch.randn(50, 3, 24).bfloat16().transpose(0, 1)
    centroids = torch.randn(8, 3, 24).bfloat16().transpose(0, 1)
    expected = assign(points.float().contiguous(), centroids.float().contiguous())
    for one, other in zip(assign(points, centroids), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_refused_by_name(value: float, dtype: torch.dtype) -> None:
    points, centroids = torch.randn(4, 30, 24).to(dtype), torch.randn(4, 5, 24).to(dtype)
    points[1, 29, 23] = points[3, 0, 0] = points[3, 7, 2] = value
    expected = "keys of layer 3: 3 of 2,880 values are NaN or infinite, in heads 1, 3; "
    with pytest.raises(NonFiniteError, match=expected) as caught:
        assign(points, centroids, name="keys of layer 3")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, QvgError)
    with pytest.raises(NonFiniteError, match=r"^centroids for points: "):
        assign(centroids, points)


@pytest.mark.parametrize(
    ("points", "centroids"),
    [((2, 9, 8), (3, 4, 8)), ((2, 9, 8), (2, 4, 7)), ((2, 9, 8), (2, 257, 8)), ((2, 0, 8),) * 2],
)
def test_shapes_that_do_not_fit_are_stopped(
    points: tuple[int, ...], centroids: tuple[int, ...]
) -> None:
    with pytest.raises(AssertionError):
        assign(torch.zeros(points), torch.zeros(centroids))
