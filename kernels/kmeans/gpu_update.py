"""Moving centroids on a GPU, in Triton: to the means of their points, empty ones to far points.

Each list, and so each mean, is made by one program, always in the same order. Heads of which fewer
than `enough` ids changed last are left alone.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.kmeans.settings import MAX_CENTROIDS

_SCANNED = 1024
_ROWS = 16
_WARPS = 4


class Members(NamedTuple):
    """The points of each centroid.

    order: int32 [heads, tokens], tokens centroid by centroid, in ascending order of each.
    starts, counts: int32 [heads, centroids], where in it a centroid's tokens begin, and how many.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor


@triton.jit(do_not_specialize=["num_tokens", "num_centroids", "enough"])
def _list(
    ids: tl.tensor,
    changed: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    counts: tl.tensor,
    num_tokens: tl.tensor,
    num_centroids: tl.tensor,
    enough: tl.tensor,
    SCANNED: tl.constexpr,
) -> None:
    """The tokens of one centroid of one head."""
    centroid = tl.program_id(0)
    head = tl.program_id(1)
    if tl.load(changed + head) < enough:
        return
    first_row = head.to(tl.int64) * num_tokens
    lane = tl.arange(0, SCANNED)
    lower = tl.zeros([SCANNED], tl.int32)
    for first in range(0, num_tokens, SCANNED):
        is_token = first + lane < num_tokens
        number = tl.load(ids + first_row + first + lane, mask=is_token, other=255).to(tl.int32)
        lower += ((number < centroid) & is_token).to(tl.int32)
    start = tl.sum(lower, axis=0)
    place = start
    for first in range(0, num_tokens, SCANNED):
        is_token = first + lane < num_tokens
        number = tl.load(ids + first_row + first + lane, mask=is_token, other=255).to(tl.int32)
        is_member = (number == centroid) & is_token
        one = is_member.to(tl.int32)
        at = place + tl.cumsum(one, axis=0) - 1
        tl.store(order + first_row + at, first + lane, mask=is_member)
        place += tl.sum(one, axis=0)
    tl.store(starts + head * num_centroids + centroid, start)
    tl.store(counts + head * num_centroids + centroid, place - start)


@triton.jit(do_not_specialize=["num_tokens", "num_centroids", "enough"])
def _average(
    points: tl.tensor,
    centroids: tl.tensor,
    changed: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    counts: tl.tensor,
    num_tokens: tl.tensor,
    num_centroids: tl.tensor,
    enough: tl.tensor,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Move one centroid of one head to the mean of its points, if it has any.

    Adds up in fp64, so that the mean of equal points is just that point.
    """
    row = tl.program_id(1).to(tl.int64) * num_centroids + tl.program_id(0)
    first_point = tl.program_id(1).to(tl.int64) * num_tokens
    count = tl.load(counts + row)
    if (tl.load(changed + tl.program_id(1)) < enough) | (count == 0):
        return
    start = tl.load(starts + row)
    channel = tl.arange(0, triton.next_power_of_2(HEAD_DIM))
    is_channel = channel < HEAD_DIM
    total = tl.zeros([ROWS, triton.next_power_of_2(HEAD_DIM)], tl.float64)
    for first in range(0, count, ROWS):
        place = first + tl.arange(0, ROWS)
        token = tl.load(order + first_point + start + place, mask=place < count, other=0)
        mask = (place < count)[:, None] & is_channel[None, :]
        point = points + (first_point + token)[:, None] * HEAD_DIM + channel[None, :]
        total += tl.load(point, mask=mask, other=0.0).to(tl.float64)
    mean = tl.sum(total, axis=0) / count.to(tl.float64)
    tl.store(centroids + row * HEAD_DIM + channel, mean.to(tl.float32), mask=is_channel)


@triton.jit(do_not_specialize=["num_tokens", "num_centroids", "enough"])
def _refill(
    points: tl.tensor,
    centroids: tl.tensor,
    distances: tl.tensor,
    changed: tl.tensor,
    counts: tl.tensor,
    num_tokens: tl.tensor,
    num_centroids: tl.tensor,
    enough: tl.tensor,
    HEAD_DIM: tl.constexpr,
    SCANNED: tl.constexpr,
    MOST: tl.constexpr,
) -> None:
    """Move the empty centroids of one head to its farthest points, in order."""
    head = tl.program_id(0).to(tl.int64)
    if tl.load(changed + head) < enough:
        return
    number = tl.arange(0, MOST)
    count = tl.load(counts + head * num_centroids + number, mask=number < num_centroids, other=1)
    num_empty = tl.sum((count == 0).to(tl.int32), axis=0)
    channel = tl.arange(0, triton.next_power_of_2(HEAD_DIM))
    lane = tl.arange(0, SCANNED)
    centroid = -1
    # Points by their distance, the lowest token first among equals, as one descending number.
    last = tl.full([], 0x7FFFFFFFFFFFFFFF, tl.int64)
    for _ in range(num_empty):
        centroid = tl.min(tl.where((count == 0) & (number > centroid), number, MOST), axis=0)
        farthest = tl.full([SCANNED], -1, tl.int64)
        for first in range(0, num_tokens, SCANNED):
            is_token = first + lane < num_tokens
            at = distances + head * num_tokens + first + lane
            distance = tl.load(at, mask=is_token, other=0.0).to(tl.int32, bitcast=True)
            key = (distance.to(tl.int64) << 32) | (0x7FFFFFFF - first - lane).to(tl.int64)
            farthest = tl.where(is_token & (key < last), tl.maximum(farthest, key), farthest)
        last = tl.max(farthest, axis=0)
        token = 0x7FFFFFFF - (last & 0x7FFFFFFF)
        if last >> 32 > 0:
            point = points + (head * num_tokens + token) * HEAD_DIM + channel
            moved = tl.load(point, mask=channel < HEAD_DIM, other=0.0)
            to = centroids + (head * num_centroids + centroid) * HEAD_DIM + channel
            tl.store(to, moved, mask=channel < HEAD_DIM)


def new_members(points: Tensor, centroids: Tensor) -> Members:
    """Room for the lists of all centroids."""
    order = points.new_empty(points.shape[:2], dtype=torch.int32)
    starts, counts = order.new_empty((2, *centroids.shape[:2]))
    return Members(order, starts, counts)


def list_members(ids: Tensor, changed: Tensor, enough: int, members: Members) -> None:
    """List the points of all centroids by their ids uint8 [heads, tokens].

    changed: int32 [heads], how many ids changed last.
    """
    num_heads, num_centroids = members.counts.shape
    _list[(num_centroids, num_heads)](
        ids, changed, *members, ids.shape[1], num_centroids, enough, SCANNED=_SCANNED
    )


def move(
    points: Tensor,
    centroids: Tensor,
    distances: Tensor,
    changed: Tensor,
    enough: int,
    members: Members,
) -> None:
    """Move centroids to the means of their points, empty ones to the farthest points.

    points, centroids: fp32 [heads, tokens, head_dim], [heads, centroids, head_dim]; distances: fp32
    [heads, tokens], from the points to their centroids.
    """
    num_heads, num_tokens, head_dim = points.shape
    num_centroids = centroids.shape[1]
    sizes = num_tokens, num_centroids, enough
    _average[(num_centroids, num_heads)](
        points, centroids, changed, *members, *sizes, HEAD_DIM=head_dim, ROWS=_ROWS
    )
    _refill[(num_heads,)](
        points,
        centroids,
        distances,
        changed,
        members.counts,
        *sizes,
        HEAD_DIM=head_dim,
        SCANNED=_SCANNED,
        MOST=MAX_CENTROIDS,
    )


def variants() -> tuple[Variant, ...]:
    """What `list_members` and `move` launch."""
    return (
        _variant("list", _list, {"SCANNED": _SCANNED}),
        *(
            variant
            for head_dim in (64, 128)
            for variant in (
                _variant(f"average-d{head_dim}", _average, {"HEAD_DIM": head_dim, "ROWS": _ROWS}),
                _variant(
                    f"refill-d{head_dim}",
                    _refill,
                    {"HEAD_DIM": head_dim, "SCANNED": _SCANNED, "MOST": MAX_CENTROIDS},
                ),
            )
        ),
    )


def _variant(name: str, kernel: Any, constants: dict[str, int]) -> Variant:
    floats = dict.fromkeys(("points", "centroids", "distances"), "*fp32")
    whole = dict.fromkeys(("changed", "order", "starts", "counts"), "*i32")
    numbers = dict.fromkeys(("num_tokens", "num_centroids", "enough"), "i32")
    kinds = floats | {"ids": "*u8"} | whole | numbers | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"kmeans-{name}",
        kernel=kernel,
        signature={argument: kinds[argument] for argument in kernel.arg_names},
        constants=constants,
        aligned=tuple(name for name in ("points", "centroids") if name in kernel.arg_names),
        num_warps=_WARPS,
    )
