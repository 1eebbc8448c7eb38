"""K-means on a GPU, in Triton.

Scores find, distances decide, as in `cpu.py`: products with centroids that were moved by their mean
give scores, and a bound of their error says for which tokens more than one centroid may be the
nearest. Where a block has such tokens, their distances to all centroids are added up channel by
channel in fp32: an offset or a scale that all points share costs no precision.

Results are the same on every run: no sum depends on the order in which programs run. The host never
waits: a head that has converged is left alone by the kernels of all iterations that follow.
"""

import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.kmeans import gpu_update
from qvg_engine.kernels.kmeans.clusters import Assignment, Clusters
from qvg_engine.kernels.kmeans.settings import KMeansSettings

_TOKENS = 64
_CHANNELS = 32
_CENTROIDS = 64
_WARPS = 4


@triton.jit
def _load_part(
    rows: tl.tensor,
    row: tl.tensor,
    is_row: tl.tensor,
    scale: tl.tensor,
    first: tl.tensor,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """CHANNELS scaled channels of rows [N], zero beyond them; row: int64 [N]."""
    channel = first + tl.arange(0, CHANNELS)
    mask = is_row[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(rows + row[:, None] * HEAD_DIM + channel[None, :], mask=mask, other=0.0) * scale


@triton.jit
def _load_shift(
    shift: tl.tensor, first: tl.tensor, HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr
) -> tl.tensor:
    """What moves these channels, fp32 [1, CHANNELS]."""
    channel = first + tl.arange(0, CHANNELS)
    return tl.load(shift + channel, mask=channel < HEAD_DIM, other=0.0)[None, :]


@triton.jit
def _find_nearest(
    points: tl.tensor,
    row: tl.tensor,
    is_token: tl.tensor,
    centroids: tl.tensor,
    first_row: tl.tensor,
    num_centroids: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    CENTROIDS: tl.constexpr,
) -> Any:
    """Of the points in `row` int64 [N], the likely nearest centroid, and if others may be it.

    A score is |c|^2 / 2 - x.c; see `cpu._bound` for how far rounding may take it.
    """
    rounding: tl.constexpr = (HEAD_DIM + 32) * 2.0**-24
    square = tl.zeros([row.shape[0]], tl.float32)
    for channel in range(0, HEAD_DIM, CHANNELS):
        move = _load_shift(shift, channel, HEAD_DIM, CHANNELS)
        x = _load_part(points, row, is_token, scale, channel, HEAD_DIM, CHANNELS) - move
        square += tl.sum(x * x, axis=1)
    norm = tl.sqrt_rn(square) * rounding
    limit = tl.full([row.shape[0]], float("inf"), tl.float32)
    least, second = limit, limit
    nearest = tl.zeros([row.shape[0]], tl.int32)
    for first in range(0, num_centroids, CENTROIDS):
        number = first + tl.arange(0, CENTROIDS)
        exists = number < num_centroids
        product = tl.zeros([row.shape[0], CENTROIDS], tl.float32)
        half = tl.zeros([CENTROIDS], tl.float32)
        for channel in range(0, HEAD_DIM, CHANNELS):
            move = _load_shift(shift, channel, HEAD_DIM, CHANNELS)
            x = _load_part(points, row, is_token, scale, channel, HEAD_DIM, CHANNELS) - move
            at = first_row + number
            c = _load_part(centroids, at, exists, scale, channel, HEAD_DIM, CHANNELS) - move
            product = tl.dot(x, tl.trans(c), product, input_precision="ieee")
            half += tl.sum(c * c, axis=1) * 0.5
        error = (
            norm[:, None] * tl.sqrt_rn(2 * half)[None, :] + (half * rounding + 2.0**-120)[None, :]
        )
        score = half[None, :] - product
        upper = tl.where(exists[None, :], score + error, float("inf"))
        lower = tl.where(exists[None, :], score - error, float("inf"))
        limit = tl.minimum(limit, tl.min(upper, axis=1))
        low, place = tl.min(lower, axis=1, return_indices=True)
        others = tl.where(tl.arange(0, CENTROIDS)[None, :] == place[:, None], float("inf"), lower)
        second = tl.minimum(tl.maximum(least, low), tl.minimum(second, tl.min(others, axis=1)))
        nearest = tl.where(low < least, first + place, nearest)
        least = tl.minimum(least, low)
    return nearest, second <= limit


@triton.jit
def _measure_all(
    points: tl.tensor,
    row: tl.tensor,
    is_open: tl.tensor,
    centroids: tl.tensor,
    first_row: tl.tensor,
    num_centroids: tl.tensor,
    scale: tl.tensor,
    HEAD_DIM: tl.constexpr,
    CENTROIDS: tl.constexpr,
) -> tl.tensor:
    """The nearest centroid of the points in `row` int64 [N], by their distances to all of them."""
    least = tl.full([row.shape[0]], float("inf"), tl.float32)
    nearest = tl.zeros([row.shape[0]], tl.int32)
    for first in range(0, num_centroids, CENTROIDS):
        number = first + tl.arange(0, CENTROIDS)
        exists = number < num_centroids
        distance = tl.zeros([row.shape[0], CENTROIDS], tl.float32)
        for channel in range(HEAD_DIM):
            x = tl.load(points + row * HEAD_DIM + channel, mask=is_open, other=0.0) * scale
            at = centroids + (first_row + number) * HEAD_DIM + channel
            c = tl.load(at, mask=exists, other=0.0) * scale
            left = x[:, None] - c[None, :]
            distance += left * left
        distance = tl.where(exists[None, :], distance, float("inf"))
        low, place = tl.min(distance, axis=1, return_indices=True)
        nearest = tl.where(low < least, first + place, nearest)
        least = tl.minimum(least, low)
    return nearest


@triton.jit(do_not_specialize=["num_tokens", "num_centroids", "enough"])
def _assign(
    points: tl.tensor,
    centroids: tl.tensor,
    scales: tl.tensor,
    shifts: tl.tensor,
    ids: tl.tensor,
    distances: tl.tensor,
    changed_before: tl.tensor,
    changed: tl.tensor,
    num_tokens: tl.tensor,
    num_centroids: tl.tensor,
    enough: tl.tensor,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CENTROIDS: tl.constexpr,
    COUNTS: tl.constexpr,
    UNSCALES: tl.constexpr,
) -> None:
    """A block of tokens of one head.

    COUNTS: add how many ids change to `changed` int32 [heads], if as many as `enough` did before.
    UNSCALES: distances are those of the points, not of the scaled ones.
    """
    head = tl.program_id(1)
    if COUNTS:  # noqa: SIM102 - this one is decided when the kernel is compiled.
        if tl.load(changed_before + head) < enough:
            return
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_token = token < num_tokens
    row = head.to(tl.int64) * num_tokens + token
    first_row = head.to(tl.int64) * num_centroids
    scale = tl.load(scales + head)
    nearest, is_open = _find_nearest(
        points,
        row,
        is_token,
        centroids,
        first_row,
        num_centroids,
        scale,
        shifts + head * HEAD_DIM,
        HEAD_DIM,
        CHANNELS,
        CENTROIDS,
    )
    is_open = is_open & is_token
    if tl.max(is_open.to(tl.int32), axis=0) > 0:
        measured = _measure_all(
            points, row, is_open, centroids, first_row, num_centroids, scale, HEAD_DIM, CENTROIDS
        )
        nearest = tl.where(is_open, measured, nearest)
    distance = tl.zeros([TOKENS], tl.float32)
    for channel in range(0, HEAD_DIM, CHANNELS):
        at = first_row + nearest
        left = _load_part(points, row, is_token, scale, channel, HEAD_DIM, CHANNELS)
        left -= _load_part(centroids, at, is_token, scale, channel, HEAD_DIM, CHANNELS)
        distance += tl.sum(left * left, axis=1)
    if UNSCALES:
        # Twice, as the square may be beyond the range of fp32 where the distance is not.
        distance = tl.div_rn(tl.div_rn(distance, scale), scale)
    if COUNTS:
        before = tl.load(ids + row, mask=is_token, other=0).to(tl.int32)
        num_changed = tl.sum(((before != nearest) & is_token).to(tl.int32), axis=0)
        tl.atomic_add(changed + head, num_changed)
    tl.store(ids + row, nearest.to(tl.uint8), mask=is_token)
    tl.store(distances + row, distance, mask=is_token)


class _Frame(NamedTuple):
    """How points and centroids are moved for their products: x * scale - shift.

    scales: fp32 [heads], of `_unit_scales`; shifts: fp32 [heads, head_dim]. Any shift will do: near
    the centroids' mean it makes the bounds small.
    """

    scales: Tensor
    shifts: Tensor


def assign(points: Tensor, centroids: Tensor) -> Assignment:
    """See `lloyd.assign`; fp32, contiguous.

    Ids differ from those of exact distances where these are equal to within fp32's rounding. All
    magnitudes of a head lie within a factor of 2^60, or smaller ones count as zero.
    """
    ids, distances = _new_assignment(points)
    frame = _make_frame(points, centroids)
    nothing = ids.new_empty(0, dtype=torch.int32)
    _launch(points, centroids, frame, ids, distances, nothing, nothing, 0, is_fit=False)
    return Assignment(ids, distances)


def fit(points: Tensor, initial: Tensor, settings: KMeansSettings) -> Clusters:
    """See `lloyd.fit`; fp32, contiguous. Launches the kernels of all iterations at once."""
    num_heads, num_tokens, _ = points.shape
    centroids = initial.clone()
    frame = _make_frame(points, initial)
    ids, distances = _new_assignment(points)
    enough = settings.enough_changes(num_tokens)
    changed = ids.new_zeros((settings.iterations + 1, num_heads), dtype=torch.int32)
    changed[0] = enough
    members = gpu_update.new_members(points, centroids)
    _launch(points, centroids, frame, ids, distances, changed[0], changed[0], 0, is_fit=True)
    for before, after in itertools.pairwise(changed):
        gpu_update.list_members(ids, before, enough, members)
        gpu_update.move(points, centroids, distances, before, enough, members)
        _launch(points, centroids, frame, ids, distances, before, after, enough, is_fit=True)
    # The last list is of the ids before the last move.
    always = torch.full_like(changed[0], enough)
    gpu_update.list_members(ids, always, enough, members)
    return Clusters(
        centroids=centroids,
        ids=ids,
        counts=members.counts.long(),
        inertia=distances.double().sum(dim=1) / frame.scales.double().square(),
        iterations=(changed[:-1] >= enough).sum(dim=0),
    )


def _unit_scales(*parts: Tensor) -> Tensor:
    """The power of two, fp32 [heads], that brings all magnitudes of a head below 1.

    It may be too large for fp32 where they are tiny, or too small; the nearest one does then, and
    none is above 4.
    """
    largest = [torch.linalg.vector_norm(x, ord=torch.inf, dim=(1, 2)) for x in parts]
    exponent = torch.frexp(torch.stack(largest).amax(dim=0)).exponent
    return ((127 - exponent.int().clamp(-126, 126)) << 23).view(torch.float32)


def _make_frame(points: Tensor, centroids: Tensor) -> _Frame:
    scales = _unit_scales(points, centroids)
    return _Frame(scales, (centroids * scales[:, None, None]).mean(dim=1))


def _new_assignment(points: Tensor) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape[:2], dtype=torch.uint8), points.new_empty(points.shape[:2])


def _launch(
    points: Tensor,
    centroids: Tensor,
    frame: _Frame,
    ids: Tensor,
    distances: Tensor,
    changed_before: Tensor,
    changed: Tensor,
    enough: int,
    *,
    is_fit: bool,
) -> None:
    num_heads, num_tokens, head_dim = points.shape
    _assign[(triton.cdiv(num_tokens, _TOKENS), num_heads)](
        points,
        centroids,
        *frame,
        ids,
        distances,
        changed_before,
        changed,
        num_tokens,
        centroids.shape[1],
        enough,
        **_constants(head_dim, counts=enough > 0, unscales=not is_fit),
        num_warps=_WARPS,
    )


def _constants(head_dim: int, *, counts: bool, unscales: bool) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "TOKENS": _TOKENS,
        "CHANNELS": _CHANNELS,
        "CENTROIDS": _CENTROIDS,
        "COUNTS": counts,
        "UNSCALES": unscales,
    }


_SIGNATURE = {
    **dict.fromkeys(("points", "centroids", "scales", "shifts"), "*fp32"),
    "ids": "*u8",
    "distances": "*fp32",
    **dict.fromkeys(("changed_before", "changed"), "*i32"),
    **dict.fromkeys(("num_tokens", "num_centroids", "enough"), "i32"),
}


def variants() -> tuple[Variant, ...]:
    """What `assign` and `fit` launch."""
    found = [
        _variant(f"kmeans-{name}-d{head_dim}", head_dim, counts=counts, unscales=unscales)
        for head_dim in (64, 128)
        for name, counts, unscales in (
            ("assign", False, True),
            ("first", False, False),
            ("again", True, False),
        )
    ]
    return (*found, *gpu_update.variants())


def _variant(name: str, head_dim: int, *, counts: bool, unscales: bool) -> Variant:
    constants = _constants(head_dim, counts=counts, unscales=unscales)
    return Variant(
        name=name,
        kernel=_assign,
        signature=_SIGNATURE | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        aligned=("points", "centroids", "shifts", "ids", "distances", "scales"),
        num_warps=_WARPS,
    )
