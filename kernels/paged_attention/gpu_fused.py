"""Attention straight over coded pages in Triton: tiles are decoded where they are multiplied.

For few queries, or where there is no room for a workspace: every tile is decoded again for each
block of queries. One launch serves passes of any number of streams, each over its own pages.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec.gpu_pages import (
    NUM_COLUMNS,
    POINTERS,
    format_of,
    has_whole_planes,
    make_angles,
    page_tables,
    pointer_types,
    pointers,
    sample_pages,
)
from qvg_engine.kernels.codec.gpu_rows import locate
from qvg_engine.kernels.codec.gpu_tiles import read_tile, woven_channels
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.spec import PRESETS
from qvg_engine.kernels.device import ARCHITECTURES, Architecture, device_of
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import gpu_merge
from qvg_engine.kernels.paged_attention.fused_tiles import num_warps, tile_tokens
from qvg_engine.kernels.paged_attention.pages import LayerPages
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.tables import default_pairs

_COLUMNS = tl.constexpr(NUM_COLUMNS)
_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))
_QUERIES = 64
_HEAD_DIMS = (64, 128)


class PagedPass(NamedTuple):
    """Queries [start, stop) of a call, and the cached tokens that they see."""

    start: int
    stop: int
    runs: PageRuns


def supports(pages: LayerPages) -> bool:
    """Whether `attend` takes these on their device, see `refusal`."""
    return refusal(pages, device_of(pages.keys.device).architecture) is None


def refusal(pages: LayerPages, architecture: Architecture) -> str | None:
    """Why `attend` does not take these on such a GPU; None if it does.

    It takes coded K and V of heads of 64 or 128, in whole tiles a page, and in formats that the GPU
    has registers for, see `fused_tiles.py`.
    """
    for name, part in (("K", pages.keys), ("V", pages.values)):
        if not isinstance(part, CodedPages):
            return f"it decodes codes, and {name} is stored without"
        if part.head_dim not in _HEAD_DIMS:
            return f"heads have {part.head_dim} channels, and it takes 64 or 128"
        assert has_whole_planes(part), (part.spec.bits, part.head_dim)
        tokens = tile_tokens(part, architecture)
        if tokens is None:
            return f"the decoding of {name} would spill registers on sm_{architecture}"
        if part.page_size % tokens:
            return f"page_size is {part.page_size}, no multiple of a tile's {tokens} tokens"
    return None


def num_programs(device: torch.device) -> int:
    """As many as run at a time, two a multiprocessor."""
    return 2 * device_of(device).num_multiprocessors


@triton.jit(do_not_specialize=["height", "width", "num_heads", "num_queries"])
def _attend(
    work: tl.tensor,
    queries: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    k_entries: tl.tensor,
    k_codes: tl.tensor,
    k_ids: tl.tensor,
    k_scales: tl.tensor,
    k_levels: tl.tensor,
    k_groups: tl.tensor,
    k_rows: tl.tensor,
    k_row_table: tl.tensor,
    k_refined_codes: tl.tensor,
    k_refined_scales: tl.tensor,
    k_refined_levels: tl.tensor,
    k_refined_groups: tl.tensor,
    v_entries: tl.tensor,
    v_codes: tl.tensor,
    v_ids: tl.tensor,
    v_scales: tl.tensor,
    v_levels: tl.tensor,
    v_groups: tl.tensor,
    v_rows: tl.tensor,
    v_row_table: tl.tensor,
    v_refined_codes: tl.tensor,
    v_refined_scales: tl.tensor,
    v_refined_levels: tl.tensor,
    v_refined_groups: tl.tensor,
    t_table: tl.tensor,
    h_table: tl.tensor,
    w_table: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    num_heads: tl.tensor,
    num_queries: tl.tensor,
    K: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    QUERIES: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """A block of queries of one head over some entries of its pass, see `_work`."""
    k_part = (
        k_codes,
        k_ids,
        k_scales,
        k_levels,
        k_groups,
        k_rows,
        k_row_table,
        k_refined_codes,
        k_refined_scales,
        k_refined_levels,
        k_refined_groups,
    )
    v_part = (
        v_codes,
        v_ids,
        v_scales,
        v_levels,
        v_groups,
        v_rows,
        v_row_table,
        v_refined_codes,
        v_refined_scales,
        v_refined_levels,
        v_refined_groups,
    )
    angles = (t_table, h_table, w_table, height, width)
    head = tl.program_id(1)
    item = work + tl.program_id(0) * 5
    first_query, count = tl.load(item), tl.load(item + 1)
    first_entry, last_entry = tl.load(item + 2), tl.load(item + 3)
    row = tl.arange(0, QUERIES)
    is_query = row < count
    k_channel = woven_channels(K.head_dim, 8 // K.bits)
    v_channel = woven_channels(V.head_dim, 8 // V.bits)
    query_row = head.to(tl.int64) * num_queries + first_query + row
    query = tl.load(
        queries + (query_row * K.head_dim)[:, None] + k_channel[None, :],
        mask=is_query[:, None],
        other=0.0,
    )
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    v_head_dim: tl.constexpr = V.head_dim
    mixed = tl.zeros((QUERIES, v_head_dim), tl.float32)
    tiles: tl.constexpr = K.page_size // TOKENS
    none: tl.constexpr = (0, 0, 0)
    for tile in range(first_entry * tiles, last_entry * tiles):
        k_entry = k_entries + (tile // tiles) * _COLUMNS
        v_entry = v_entries + (tile // tiles) * _COLUMNS
        token = (tile % tiles) * TOKENS + tl.arange(0, TOKENS)
        is_read = token < tl.load(k_entry + 3)
        position = tl.load(k_entry + 1) + token
        k_at = locate(k_entry, token, num_heads, head, K)
        keys = read_tile(k_part, k_at, angles, position, is_read, K, R, query.dtype)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * (scale * _LOG2_E)
        scores = tl.where(is_read[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        # An entry may be shorter than a page: then nothing was seen of its last tiles.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(largest - base)
        total = total * decay + tl.sum(weights, 1)
        v_at = locate(v_entry, token, num_heads, head, V)
        values = read_tile(v_part, v_at, angles, position, is_read, V, none, query.dtype)
        mixed = mixed * decay[:, None]
        mixed += tl.dot(weights.to(query.dtype), values, input_precision="ieee")
        largest = higher
    # Of [ranges, heads, queries].
    first_row = (tl.load(item + 4).to(tl.int64) * num_heads + head) * num_queries
    place = first_row + first_query + row
    divisor = tl.where(total > 0, total, 1.0)
    tl.store(
        out + (place * V.head_dim)[:, None] + v_channel[None, :],
        mixed / divisor[:, None],
        mask=is_query[:, None],
    )
    tl.store(lse + place, (largest + tl.log2(divisor)) * _LN_2, mask=is_query)


def attend(
    queries: Tensor,
    pages: LayerPages,
    passes: Sequence[PagedPass],
    *,
    rope: RopeGrid | None,
    scale: float,
    num_programs: int,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of every pass over its own pages.

    Args:
        queries: [heads, queries, head_dim], rotated already, contiguous.
        pages: K and V of one layer; see `supports`.
        passes: disjoint ranges of the queries, each with at least one cached token.
        rope: rotate K to its tokens' places, or None.
        scale: of the scores.
        num_programs: entries of a pass are split until there are about as many programs.

    Returns the output, fp32 [heads, queries, head_dim], and the log-sum-exp of the scores, fp32
    [heads, queries]; 0 and -inf where no pass has a query. The host does not wait for the device.
    """
    num_heads, num_queries, _ = queries.shape
    keys, values = pages.keys, pages.values
    assert isinstance(keys, CodedPages)
    assert isinstance(values, CodedPages)
    assert queries.is_contiguous()
    runs = PageRuns.join([part.runs for part in passes])
    splits = _split(passes, num_heads, num_programs)
    work = _work(passes, splits)
    k_entries, k_row_table = page_tables(keys, runs, 0)
    v_entries, v_row_table = page_tables(values, runs, 0)
    angles = make_angles(rope, runs.largest_position, queries.device)
    architecture = device_of(queries.device).architecture
    tokens = [tile_tokens(part, architecture) for part in (keys, values)]
    is_whole = sum(part.stop - part.start for part in passes) == num_queries
    parts, part_lse = _empty_parts(queries, splits, is_whole=is_whole)
    _attend[(len(work), num_heads)](
        to_device(work.reshape(-1), queries.device),
        queries,
        parts,
        part_lse,
        k_entries,
        *pointers(keys, k_row_table),
        v_entries,
        *pointers(values, v_row_table),
        *angles.tables,
        *angles.frame,
        scale,
        num_heads,
        num_queries,
        K=format_of(keys),
        V=format_of(values),
        R=angles.pairs,
        QUERIES=_QUERIES,
        TOKENS=min(count for count in tokens if count is not None),
        num_warps=min(num_warps(part, architecture) for part in (keys, values)),
    )
    if len(parts) == 1:
        return parts[0], part_lse[0]
    out, lse = torch.empty_like(parts[0]), torch.empty_like(part_lse[0])
    gpu_merge.merge_ranges(parts, part_lse, out, lse)
    return out, lse


def _empty_parts(
    queries: Tensor, splits: Sequence[int], *, is_whole: bool
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of every range; that of nothing where not all will be written."""
    shape = (max(splits), *queries.shape)
    if is_whole and min(splits) == max(splits):
        parts = queries.new_empty(shape, dtype=torch.float32)
        return parts, parts.new_empty(shape[:-1])
    parts = queries.new_zeros(shape, dtype=torch.float32)
    return parts, parts.new_full(shape[:-1], -math.inf)


def _split(passes: Sequence[PagedPass], num_heads: int, num_programs: int) -> list[int]:
    """Into how many parts the entries of each pass go."""
    blocks = [-(-(part.stop - part.start) // _QUERIES) for part in passes]
    wanted = max(1, num_programs // max(1, num_heads * sum(blocks)))
    return [min(wanted, len(part.runs.page_id)) for part in passes]


def _work(passes: Sequence[PagedPass], splits: Sequence[int]) -> NDArray[np.int32]:
    """What each program of a head does, int32 [programs, 5].

    First query, number of queries, first and last entry, and which range of its pass these are.
    """
    items, first_entry = [], 0
    for part, num_splits in zip(passes, splits, strict=True):
        num_entries = len(part.runs.page_id)
        ends = first_entry + np.arange(num_splits + 1) * num_entries // num_splits
        items += [
            (first, min(_QUERIES, part.stop - first), *ends[split : split + 2], split)
            for split in range(num_splits)
            for first in range(part.start, part.stop, _QUERIES)
        ]
        first_entry += num_entries
    return np.array(items, np.int32).reshape(-1, 5)


def variants() -> tuple[Variant, ...]:
    """What `attend` launches for the named formats in bf16, K rotated."""
    return tuple(
        _variant(name, head_dim, *launch, architectures)
        for name in PRESETS
        for head_dim in _HEAD_DIMS
        for launch, architectures in _offers(name, head_dim).items()
    )


def _offers(name: str, head_dim: int) -> dict[tuple[int, int], tuple[int, ...]]:
    """The tiles and warps of a format with the architectures that take them."""
    pages = sample_pages(PRESETS[name], head_dim, is_key=True)
    offers: dict[tuple[int, int], tuple[int, ...]] = {}
    for architecture in ARCHITECTURES:
        tokens = tile_tokens(pages, architecture)
        if tokens is not None:
            launch = tokens, num_warps(pages, architecture)
            offers[launch] = (*offers.get(launch, ()), architecture)
    return offers


def _variant(
    name: str, head_dim: int, tokens: int, warps: int, architectures: tuple[int, ...]
) -> Variant:
    keys, values = (sample_pages(PRESETS[name], head_dim, is_key=k) for k in (True, False))
    types = pointer_types(keys)
    tensors = {
        "work": "*i32",
        "queries": "*bf16",
        **dict.fromkeys(("out", "lse", "t_table", "h_table", "w_table"), "*fp32"),
        **dict.fromkeys(("k_entries", "v_entries"), "*i32"),
        **{f"{part}_{name}": types[name] for part in "kv" for name in POINTERS},
    }
    constants = {
        "K": format_of(keys),
        "V": format_of(values),
        "R": default_pairs(head_dim),
        "QUERIES": _QUERIES,
        "TOKENS": tokens,
    }
    numbers = dict.fromkeys(("height", "width", "num_heads", "num_queries"), "i32")
    kinds = tensors | numbers | {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"fused-{name}-d{head_dim}-t{tokens}-w{warps}",
        kernel=_attend,
        signature={argument: kinds[argument] for argument in _attend.arg_names},
        constants=constants,
        aligned=tuple(tensor for tensor in tensors if not tensor.endswith("row_table")),
        num_warps=warps,
        architectures=architectures,
    )
