"""Encoding on a GPU, in Triton: scales, codes and ids straight into pages.

For the same scales codes are those of the reference, bit by bit, and so are scales by the rule
"absmax". Those of the others come of sums of fp32 instead of fp64: a scale that fp32's rounding
cannot tell from another one may be that.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec import gpu_trellis_store as trellis_store
from qvg_engine.kernels.codec.gpu_pages import pointer_types, sample_pages
from qvg_engine.kernels.codec.gpu_rows import read
from qvg_engine.kernels.codec.gpu_scales import as_stored, inverse_of, narrow, unit_of
from qvg_engine.kernels.codec.pages import (
    CodedPages,
)
from qvg_engine.kernels.codec.refinement import REFINEMENT
from qvg_engine.kernels.codec.spec import PEAK_FACTORS, PRESETS, SPREAD_FACTORS, CodecSpec
from qvg_engine.kernels.device import ARCHITECTURES, device_of
from qvg_engine.kernels.device_table import to_device
from qvg_engine.kernels.gpu import Variant

_TOKENS = 32
_WARPS = 4
# What kernels call the scale rules.
_RULES = {"absmax": 0, "spread": 1, "searched": 2}
_PART = 32


@triton.jit
def _choose_levels(
    normal: tl.tensor,
    scale: tl.tensor,
    levels: tl.tensor,
    thresholds: tl.tensor,
    NUM_LEVELS: tl.constexpr,
) -> tl.tensor:
    """The levels nearest to normal / scale, but for rounding."""
    level = tl.zeros_like(normal) + tl.load(levels)
    for i in range(NUM_LEVELS - 1):
        is_above = normal > tl.load(thresholds + i) * scale
        level = tl.where(is_above, tl.load(levels + i + 1), level)
    return level


@triton.jit
def _search(
    x: tl.tensor,
    normal: tl.tensor,
    width: tl.tensor,
    peak: tl.tensor,
    spread: tl.tensor,
    unit: tl.tensor,
    is_channel: tl.tensor,
    levels: tl.tensor,
    thresholds: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    NUM_LEVELS: tl.constexpr,
    SPREADS: tl.constexpr,
    PEAKS: tl.constexpr,
) -> tl.tensor:
    """The scales fp32 [tokens, groups] by the rule "searched", as they are stored.

    x, normal: fp32 [tokens, groups, group], with and without widths; peak, spread: fp64 [tokens,
    groups], the usual scales; factors: fp64, of the spread and then of the peak.
    """
    best = tl.zeros_like(peak).to(tl.float32)
    best_error = tl.full(best.shape, float("inf"), tl.float32)
    for trial in range(SPREADS + PEAKS + 1):
        is_last = trial == SPREADS + PEAKS
        if is_last:
            level = _choose_levels(normal, best[:, :, None], levels, thresholds, NUM_LEVELS)
            along = tl.where(is_channel, level * width, 0.0)
            product = tl.sum(x * unit * along, axis=2)
            square = tl.sum(along * along, axis=2)
            fitted = product.to(tl.float64) / square.to(tl.float64) * inverse_of(unit)
            wanted = tl.where((product > 0) & (square > 0), fitted, best.to(tl.float64))
        else:
            usual = tl.where(tl.zeros_like(best) + trial < SPREADS, spread, peak)
            wanted = usual * tl.load(factors + trial)
        tried = as_stored(wanted.to(tl.float32), scales)
        level = _choose_levels(normal, tried[:, :, None], levels, thresholds, NUM_LEVELS)
        left = tl.where(is_channel, (x - level * tried[:, :, None] * width) * unit, 0.0)
        error = tl.sum(left * left, axis=2)
        is_better = (error < best_error) | (tl.zeros_like(best) + trial == 0)
        best = tl.where(is_better, tried, best)
        best_error = tl.where(is_better, error, best_error)
    return best


@triton.jit(do_not_specialize=["num_tokens", "num_heads"])
def _store(
    residual: tl.tensor,
    ids: tl.tensor,
    page_ids: tl.tensor,
    stored_widths: tl.tensor,
    group_channels: tl.tensor,
    groups: tl.tensor,
    levels: tl.tensor,
    thresholds: tl.tensor,
    factors: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    stored_ids: tl.tensor,
    errors: tl.tensor,
    num_tokens: tl.tensor,
    num_heads: tl.tensor,
    top: tl.tensor,
    NUM_LEVELS: tl.constexpr,
    ZERO_CODE: tl.constexpr,
    NORMAL_SCALE: tl.constexpr,
    RULE: tl.constexpr,
    SPREADS: tl.constexpr,
    PEAKS: tl.constexpr,
    BITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    PAGE: tl.constexpr,
    WIDTHS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """A block of tokens of one head; first in groups of channels, then in planes of codes."""
    size: tl.constexpr = (HEAD_DIM * BITS + 7) // 8
    group_size: tl.constexpr = HEAD_DIM // GROUPS
    block, head = tl.program_id(0), tl.program_id(1)
    token = block * TOKENS + tl.arange(0, TOKENS)
    is_token = token < num_tokens
    token_row = head.to(tl.int64) * num_tokens + token
    page = tl.load(page_ids + token // PAGE, mask=is_token, other=0)
    row = (page * num_heads + head) * PAGE + token % PAGE

    group = tl.arange(0, triton.next_power_of_2(GROUPS))
    place = tl.arange(0, triton.next_power_of_2(group_size))
    exists = (group < GROUPS)[:, None] & (place < group_size)[None, :]
    listed = group[:, None] * group_size + place[None, :]
    channel = tl.load(group_channels + listed, mask=exists, other=0)
    is_channel = exists[None, :, :]
    at = residual + (token_row * HEAD_DIM)[:, None, None] + channel[None, :, :]
    x = tl.load(at, mask=is_channel & is_token[:, None, None], other=0.0)
    width = tl.full(channel.shape, 1.0, tl.float32)
    if WIDTHS:
        width = read(stored_widths + head * HEAD_DIM + channel, exists)
        width = tl.where(exists, width, 1.0)
    unit = unit_of(tl.max(tl.max(tl.max(tl.abs(x), axis=2), axis=1), axis=0))
    width = width[None, :, :]
    normal = tl.div_rn(x, width)
    peak = tl.max(tl.abs(normal), axis=2)
    peak = tl.div_rn(peak, tl.zeros_like(peak) + top)
    if RULE == 0:
        scale = as_stored(peak, scales)
    else:
        energy = tl.sum((x * unit) * (x * unit), axis=2).to(tl.float64)
        weight = tl.sum(tl.where(is_channel, width * width, 0.0), axis=2).to(tl.float64)
        # Groups that do not exist have no weight.
        weight = tl.where((group < GROUPS)[None, :], weight, 1.0)
        spread = tl.sqrt(energy / weight) * inverse_of(unit) * NORMAL_SCALE
        scale = as_stored(spread.to(tl.float32), scales)
        if RULE == 2:
            scale = _search(
                x,
                normal,
                width,
                peak.to(tl.float64),
                spread,
                unit,
                is_channel,
                levels,
                thresholds,
                factors,
                scales,
                NUM_LEVELS,
                SPREADS,
                PEAKS,
            )
    at_scale = scales + (row * GROUPS)[:, None] + group[None, :]
    tl.store(at_scale, narrow(scale, scales), mask=is_token[:, None] & (group < GROUPS)[None, :])
    # What one thread writes others read.
    tl.debug_barrier()

    byte = tl.arange(0, triton.next_power_of_2(size))
    plane = tl.arange(0, 8 // BITS)
    channel = plane[:, None] * size + byte[None, :]
    exists = (channel < HEAD_DIM) & (byte < size)[None, :]
    mask = exists[None, :, :] & is_token[:, None, None]
    at = residual + (token_row * HEAD_DIM)[:, None, None] + channel[None, :, :]
    x = tl.load(at, mask=mask, other=0.0)
    of_group = tl.load(groups + channel, mask=exists, other=0)
    scale = read(scales + (row * GROUPS)[:, None, None] + of_group[None, :, :], mask)
    width = tl.full(channel.shape, 1.0, tl.float32)
    if WIDTHS:
        width = read(stored_widths + head * HEAD_DIM + channel, exists)
        width = tl.where(exists, width, 1.0)
    width = width[None, :, :]
    ratio = tl.div_rn(tl.div_rn(x, width), scale)
    code = tl.zeros_like(x).to(tl.int32)
    for i in range(NUM_LEVELS - 1):
        code += (ratio > tl.load(thresholds + i)).to(tl.int32)
    code = tl.where(scale == 0, ZERO_CODE, code)
    left = (x - tl.load(levels + code) * scale * width) * unit
    left = tl.where(mask, left, 0.0)
    error = tl.sum(tl.sum(tl.sum(left * left, axis=2), axis=1), axis=0).to(tl.float64)
    code = tl.where(exists[None, :, :], code, 0)
    packed = tl.sum(code << (plane * BITS)[None, :, None], axis=1).to(tl.uint8)
    at_byte = codes + (row * size)[:, None] + byte[None, :]
    tl.store(at_byte, packed, mask=is_token[:, None] & (byte < size)[None, :])
    for stage in tl.static_range(STAGES):
        source = (head.to(tl.int64) * STAGES + stage) * num_tokens + token
        number = tl.load(ids + source, mask=is_token, other=0)
        target = ((page * num_heads + head) * STAGES + stage) * PAGE + token % PAGE
        tl.store(stored_ids + target, number, mask=is_token)
    scale_back = inverse_of(unit)
    tl.store(errors + block * num_heads + head, error * scale_back * scale_back)


class _Tables(NamedTuple):
    """What kernels look up of a format, on the device of its pages."""

    group_channels: Tensor
    groups: Tensor
    levels: Tensor
    thresholds: Tensor
    factors: Tensor


def store(
    pages: CodedPages, page_ids: NDArray[np.int64], residual: Tensor, ids: Tensor, *, slot: int
) -> Tensor:
    """See `reference.store`; the energies fp64 [heads] stay on the device, and nobody waits.

    Residuals of a block of tokens lie within a factor of 2^60, or smaller ones count as zero where
    scales are compared.
    """
    num_heads, num_tokens, head_dim = residual.shape
    if not num_tokens:
        return residual.new_zeros(num_heads, dtype=torch.float64)
    spec, books = pages.spec, pages.codebooks
    tables = _tables(pages)
    has_widths = books.has_widths
    widths = books.rows[int(books.row_table[slot, 0])] if has_widths else books.rows
    block = trellis_store.TOKENS if spec.trellis else _TOKENS
    num_blocks = triton.cdiv(num_tokens, block)
    errors = residual.new_empty((num_blocks, num_heads), dtype=torch.float64)
    sources = (residual, ids, to_device(page_ids, pages.device), widths)
    pages_and_errors = (pages.codes, pages.scales, pages.ids, errors)
    if spec.trellis:
        numbers = trellis_store.scratch_numbers(head_dim, pages.scales.shape[3])
        programs = num_blocks * num_heads
        trellis_store.store_trellis[(num_blocks, num_heads)](
            *sources,
            *tables[:3],
            *pages_and_errors,
            residual.new_empty((programs, numbers)),
            ids.new_empty((programs, head_dim * block)),
            num_tokens,
            num_heads,
            num_blocks,
            spec.top,
            **_constants(pages),
            num_warps=trellis_store.warps(head_dim, device_of(pages.device).architecture),
            enable_fp_fusion=False,
        )
    else:
        _store[(num_blocks, num_heads)](
            *sources,
            *tables,
            *pages_and_errors,
            num_tokens,
            num_heads,
            spec.top,
            **_constants(pages),
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
    return errors.sum(dim=0)


def _tables(pages: CodedPages) -> _Tables:
    if "store" not in pages.kept:
        spec = pages.spec
        on_host = _Tables(
            group_channels=torch.from_numpy(pages.group_channels.reshape(-1).astype(np.int32)),
            groups=torch.from_numpy(pages.channel_groups),
            levels=torch.tensor(spec.levels, dtype=torch.float32),
            thresholds=torch.tensor(spec.thresholds, dtype=torch.float32),
            factors=torch.tensor(SPREAD_FACTORS + PEAK_FACTORS, dtype=torch.float64),
        )
        pages.kept["store"] = _Tables(*(table.to(pages.device) for table in on_host))
    tables: _Tables = pages.kept["store"]
    return tables


def _constants(pages: CodedPages) -> dict[str, Any]:
    spec = pages.spec
    common = {
        "NORMAL_SCALE": spec.normal_scale,
        "RULE": _RULES[spec.scale_rule],
        "BITS": spec.bits,
        "HEAD_DIM": pages.head_dim,
        "GROUPS": pages.scales.shape[3],
        "STAGES": spec.stages,
        "PAGE": pages.page_size,
        "WIDTHS": pages.codebooks.has_widths,
    }
    if spec.trellis:
        levels = tuple(map(float, spec.levels))
        return common | {"LEVELS": levels, "TOKENS": trellis_store.TOKENS, "PART": _PART}
    return common | {
        "NUM_LEVELS": len(spec.levels),
        "ZERO_CODE": spec.zero_code,
        "SPREADS": len(SPREAD_FACTORS),
        "PEAKS": len(PEAK_FACTORS),
        "TOKENS": _TOKENS,
    }


def variants() -> tuple[Variant, ...]:
    """What `store` launches for the named formats, and for refinements."""
    specs = PRESETS | {"refinement": REFINEMENT}
    found = []
    for name, spec in specs.items():
        for head_dim in (64, 128):
            of_head = spec.for_head_dim(head_dim)
            for count, architectures in _all_warps(of_head, head_dim).items():
                label = f"store-{name}-d{head_dim}-w{count}"
                found.append(_variant(label, of_head, head_dim, count, architectures))
    return tuple(found)


def _all_warps(spec: CodecSpec, head_dim: int) -> dict[int, tuple[int, ...]]:
    """How many warps a program has, with the architectures where it does."""
    found: dict[int, tuple[int, ...]] = {}
    for architecture in ARCHITECTURES:
        count = trellis_store.warps(head_dim, architecture) if spec.trellis else _WARPS
        found[count] = (*found.get(count, ()), architecture)
    return found


def _variant(
    name: str, spec: CodecSpec, head_dim: int, num_warps: int, architectures: tuple[int, ...]
) -> Variant:
    pages = sample_pages(spec, head_dim, is_key=True)
    kernel = trellis_store.store_trellis if spec.trellis else _store
    floats = dict.fromkeys(("residual", "levels", "thresholds", "numbers"), "*fp32")
    doubles = dict.fromkeys(("factors", "errors"), "*fp64")
    bytes_ = dict.fromkeys(("ids", "codes", "scales", "stored_ids", "trails"), "*u8")
    whole = {"page_ids": "*i64", **dict.fromkeys(("group_channels", "groups"), "*i32")}
    of_books = {"stored_widths": pointer_types(pages)["rows"]}
    pointers = floats | doubles | bytes_ | whole | of_books
    sizes = dict.fromkeys(("num_tokens", "num_heads", "num_blocks"), "i32") | {"top": "fp32"}
    constants = _constants(pages)
    kinds = pointers | sizes | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=name,
        kernel=kernel,
        signature={argument: kinds[argument] for argument in kernel.arg_names},
        constants=constants,
        aligned=tuple(name for name in pointers if name in kernel.arg_names),
        num_warps=num_warps,
        architectures=architectures,
        fp_fusion=False,
    )
