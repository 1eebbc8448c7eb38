"""Scales and codes of a trellis on a GPU, in Triton.

A program has a block of tokens of one head, a token in each lane. Columns of the residual, and
which way each path came, are in scratch memory, which stays in the caches. For the same scales
codes are those of `trellis.choose_codes`, bit by bit: the kernel is compiled without fused
multiply-adds. Sums that choose between scales are of fp32.
"""

import triton
import triton.language as tl

from qvg_engine.kernels.codec.gpu_rows import read
from qvg_engine.kernels.codec.gpu_scales import as_stored, inverse_of, narrow, unit_of
from qvg_engine.kernels.codec.gpu_trellis import find_paths, trace_back
from qvg_engine.kernels.device import Architecture

TOKENS = 128


def warps(head_dim: int, architecture: Architecture) -> int:
    """Of a program. With four, small heads would spill on sm_100: its compiler spares registers."""
    return 2 if architecture == 100 and head_dim == 64 else 4


@triton.jit
def _load_columns(
    residual: tl.tensor,
    row: tl.tensor,
    is_token: tl.tensor,
    columns: tl.tensor,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    PART: tl.constexpr,
) -> tl.tensor:
    """Write rows [TOKENS] of a residual to columns [HEAD_DIM, TOKENS]; the largest magnitude."""
    lane = tl.arange(0, TOKENS)
    largest = 0.0
    for first in range(0, HEAD_DIM, PART):
        channel = first + tl.arange(0, PART)
        mask = (channel < HEAD_DIM)[None, :]
        at = residual + row[:, None] * HEAD_DIM + channel[None, :]
        x = tl.load(at, mask=mask & is_token[:, None], other=0.0)
        largest = tl.maximum(largest, tl.max(tl.max(tl.abs(x), axis=1), axis=0))
        # Those without a token are zero.
        tl.store(columns + channel[None, :] * TOKENS + lane[:, None], x, mask=mask)
    return largest


@triton.jit
def _fill_candidates(
    columns: tl.tensor,
    widths: tl.tensor,
    group_channels: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    top: tl.tensor,
    unit: tl.tensor,
    NORMAL_SCALE: tl.constexpr,
    RULE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """Write the first scales that are tried, as they are stored: fp32 [trials, GROUPS, TOKENS]."""
    lane = tl.arange(0, TOKENS)
    for group in range(GROUPS):
        # In two loops: a division keeps few numbers in registers.
        largest = tl.zeros([TOKENS], tl.float32)
        for i in range(GROUP):
            channel = tl.load(group_channels + group * GROUP + i)
            x, width = tl.load(columns + channel * TOKENS + lane), tl.load(widths + channel)
            largest = tl.maximum(largest, tl.div_rn(tl.abs(x), width))
        energy, weight = tl.zeros([TOKENS], tl.float32), tl.zeros([TOKENS], tl.float32)
        for i in range(GROUP):
            channel = tl.load(group_channels + group * GROUP + i)
            x, width = tl.load(columns + channel * TOKENS + lane), tl.load(widths + channel)
            weight += width * width
            energy += (x * unit) * (x * unit)
        # From here on as the reference does, in fp64.
        peak = tl.div_rn(largest, tl.zeros_like(largest) + top).to(tl.float64)
        spread = tl.sqrt(energy.to(tl.float64) / weight.to(tl.float64)) * inverse_of(unit)
        spread = spread * NORMAL_SCALE
        at = values + group * TOKENS + lane
        if RULE == 0:
            tl.store(at, as_stored(peak.to(tl.float32), scales))
        else:
            tl.store(at, as_stored(spread.to(tl.float32), scales))
        if RULE == 2:
            between = tl.sqrt(spread * peak).to(tl.float32)
            tl.store(at + GROUPS * TOKENS, as_stored(between, scales))
            tl.store(at + 2 * GROUPS * TOKENS, as_stored(peak.to(tl.float32), scales))


@triton.jit
def _measure(
    columns: tl.tensor,
    widths: tl.tensor,
    group_channels: tl.tensor,
    levels: tl.tensor,
    values: tl.tensor,
    path: tl.tensor,
    least_errors: tl.tensor,
    wanted: tl.tensor,
    scales: tl.tensor,
    is_first: tl.tensor,
    is_not_last: tl.tensor,
    unit: tl.tensor,
    FITS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tl.tensor:
    """The squared errors [TOKENS] of paths; FITS: note what scales are best for their levels.

    least_errors, wanted: fp32 [GROUPS, TOKENS], of the trials up to now, if not `is_first`. The
    last trial is of what is wanted, and leaves it as it is.
    """
    lane = tl.arange(0, TOKENS)
    total = tl.zeros([TOKENS], tl.float32)
    for group in range(GROUPS):
        at = group * TOKENS + lane
        scale = tl.load(values + at)
        error, product = tl.zeros([TOKENS], tl.float32), tl.zeros([TOKENS], tl.float32)
        square = tl.zeros([TOKENS], tl.float32)
        for i in range(GROUP):
            channel = tl.load(group_channels + group * GROUP + i)
            x, width = tl.load(columns + channel * TOKENS + lane), tl.load(widths + channel)
            word = tl.load(path + channel * TOKENS + lane).to(tl.int32)
            level = tl.load(levels + (word >> 1))
            left = (x - level * scale * width) * unit
            error += left * left
            if FITS:
                along = level * width
                product += (x * unit) * along
                square += along * along
        total += error
        if FITS:
            fitted = as_stored(product / square * inverse_of(unit).to(tl.float32), scales)
            fitted = tl.where((product > 0) & (square > 0), fitted, scale)
            is_better = is_first | ((error < tl.load(least_errors + at)) & is_not_last)
            tl.store(least_errors + at, error, mask=is_better)
            tl.store(wanted + at, fitted, mask=is_better)
    return total


@triton.jit
def _write_rows(
    path: tl.tensor,
    values: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    row: tl.tensor,
    is_written: tl.tensor,
    BITS: tl.constexpr,
    SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """Write codes and scales to the rows int64 [TOKENS] of pages."""
    lane = tl.arange(0, TOKENS)
    for group in range(GROUPS):
        value = tl.load(values + group * TOKENS + lane)
        tl.store(scales + row * GROUPS + group, narrow(value, scales), mask=is_written)
    for byte in range(SIZE):
        packed = tl.zeros([TOKENS], tl.int32)
        for plane in tl.static_range(8 // BITS):
            word = tl.load(path + (plane * SIZE + byte) * TOKENS + lane).to(tl.int32)
            packed |= ((word >> 3) * 2 + (word & 1)) << (plane * BITS)
        tl.store(codes + row * SIZE + byte, packed.to(tl.uint8), mask=is_written)


@triton.jit(do_not_specialize=["num_tokens", "num_heads", "num_blocks"])
def store_trellis(
    residual: tl.tensor,
    ids: tl.tensor,
    page_ids: tl.tensor,
    stored_widths: tl.tensor,
    group_channels: tl.tensor,
    groups: tl.tensor,
    levels: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    stored_ids: tl.tensor,
    errors: tl.tensor,
    numbers: tl.tensor,
    trails: tl.tensor,
    num_tokens: tl.tensor,
    num_heads: tl.tensor,
    num_blocks: tl.tensor,
    top: tl.tensor,
    LEVELS: tl.constexpr,
    NORMAL_SCALE: tl.constexpr,
    RULE: tl.constexpr,
    BITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    PAGE: tl.constexpr,
    WIDTHS: tl.constexpr,
    TOKENS: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Store a block of tokens of one head, see `gpu_store.store`.

    numbers: fp32, `scratch_numbers` for each program; trails: uint8, HEAD_DIM * TOKENS of them.
    """
    size: tl.constexpr = HEAD_DIM * BITS // 8
    group: tl.constexpr = HEAD_DIM // GROUPS
    block, head = tl.program_id(0), tl.program_id(1)
    program = (head * num_blocks + block).to(tl.int64)
    columns = numbers + program * ((HEAD_DIM + 5 * GROUPS) * TOKENS + HEAD_DIM)
    values = columns + HEAD_DIM * TOKENS
    least_errors = values + 4 * GROUPS * TOKENS
    widths = least_errors + GROUPS * TOKENS
    trail = trails + program * (HEAD_DIM * TOKENS)
    token = block * TOKENS + tl.arange(0, TOKENS)
    is_token = token < num_tokens
    token_row = head.to(tl.int64) * num_tokens + token
    page = tl.load(page_ids + token // PAGE, mask=is_token, other=0)
    row = (page * num_heads + head) * PAGE + token % PAGE
    for stage in tl.static_range(STAGES):
        source = (head.to(tl.int64) * STAGES + stage) * num_tokens + token
        number = tl.load(ids + source, mask=is_token, other=0)
        target = ((page * num_heads + head) * STAGES + stage) * PAGE + token % PAGE
        tl.store(stored_ids + target, number, mask=is_token)

    channel = tl.arange(0, triton.next_power_of_2(HEAD_DIM))
    width = tl.full([triton.next_power_of_2(HEAD_DIM)], 1.0, tl.float32)
    if WIDTHS:
        width = read(stored_widths + head * HEAD_DIM + channel, channel < HEAD_DIM)
    tl.store(widths + channel, width, mask=channel < HEAD_DIM)
    largest = _load_columns(residual, token_row, is_token, columns, HEAD_DIM, TOKENS, PART)
    unit = unit_of(largest)
    # What one thread writes to scratch memory others may read.
    tl.debug_barrier()
    _fill_candidates(
        columns,
        widths,
        group_channels,
        values,
        scales,
        top,
        unit,
        NORMAL_SCALE,
        RULE,
        GROUPS,
        group,
        TOKENS,
    )
    trials: tl.constexpr = 4 if RULE == 2 else 1
    best = tl.full([TOKENS], float("inf"), tl.float32)
    for trial in range(trials):
        tried = values + trial * (GROUPS * TOKENS)
        is_first = tl.zeros([TOKENS], tl.int32) + trial == 0
        tl.debug_barrier()
        state = find_paths(columns, widths, groups, tried, trail, LEVELS, BITS, size, TOKENS)
        tl.debug_barrier()
        trace_back(state, columns, widths, groups, tried, trail, LEVELS, BITS, size, TOKENS)
        tl.debug_barrier()
        total = _measure(
            columns,
            widths,
            group_channels,
            levels,
            tried,
            trail,
            least_errors,
            values + 3 * GROUPS * TOKENS,
            scales,
            is_first,
            tl.zeros([TOKENS], tl.int32) + trial < trials - 1,
            unit,
            trials > 1,
            GROUPS,
            group,
            TOKENS,
        )
        is_better = (is_first | (total < best)) & is_token
        best = tl.where(is_better, total, best)
        if tl.max(is_better.to(tl.int32), axis=0) > 0:
            _write_rows(trail, tried, codes, scales, row, is_better, BITS, size, GROUPS, TOKENS)
    error = tl.sum(tl.where(is_token, best, 0.0), axis=0).to(tl.float64)
    scale_back = inverse_of(unit)
    tl.store(errors + block * num_heads + head, error * scale_back * scale_back)


def scratch_numbers(head_dim: int, groups: int) -> int:
    """fp32 numbers of scratch memory that a program needs: columns, scales, errors and widths."""
    return (head_dim + 5 * groups) * TOKENS + head_dim
