"""Encoding and decoding in plain torch: slow, short, on any device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec import trellis
from qvg_engine.kernels.codec.e4m3 import from_e4m3, to_e4m3
from qvg_engine.kernels.codec.packing import pack, unpack
from qvg_engine.kernels.codec.pages import CodedPages
from qvg_engine.kernels.codec.spec import PEAK_FACTORS, SPREAD_FACTORS, CodecSpec
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.kernels.rope.reference import rotate


def store(
    pages: CodedPages, page_ids: NDArray[np.int64], residual: Tensor, ids: Tensor, *, slot: int
) -> NDArray[np.float64]:
    """Code a residual, and write it with its ids into pages.

    Args:
        pages: K or V of one layer.
        page_ids: the pages to fill, in order; just as many as there are rows for.
        residual: fp32 [heads, tokens, head_dim], contiguous: rows minus their centroids.
        ids: uint8 [heads, stages, tokens].
        slot: the codebook whose widths are used.

    Returns the energy of what the codes leave, fp64 [heads].
    """
    device = residual.device
    widths = pages.codebooks.widths(slot)
    channels = torch.from_numpy(pages.group_channels).to(device)
    grouped = residual[..., channels]
    weights = torch.ones_like(grouped[:, :1])
    if widths is not None:
        weights = widths.float()[:, None, channels]
    if pages.spec.trellis:
        scales, in_row = _trellis_codes(residual, widths, pages)
    else:
        scales = _stored_scales(grouped, weights, pages.spec)
        values = _scale_values(scales)
        codes = _nearest(grouped / weights, values, pages.spec)
        codes[values == 0] = pages.spec.zero_code
        in_row = torch.empty(residual.shape, dtype=torch.uint8, device=device)
        in_row[..., channels] = codes.to(torch.uint8)
    groups = torch.from_numpy(pages.channel_groups).to(device).long()
    rounded = _code_levels(in_row, pages.spec) * _scale_values(scales)[..., groups]
    left = residual - (rounded if widths is None else rounded * widths.float()[:, None])

    token = np.arange(residual.shape[1])
    page = torch.from_numpy(page_ids[token // pages.page_size]).to(device)
    row = torch.from_numpy(token % pages.page_size).to(device)
    pages.codes[page, :, row] = pack(in_row, pages.spec.bits).transpose(0, 1)
    pages.scales[page, :, row] = scales.transpose(0, 1)
    pages.ids[page, :, :, row] = ids.permute(2, 0, 1)
    return np.asarray(left.double().square().sum(dim=(1, 2)).cpu().numpy())


def decode(
    pages: CodedPages, runs: PageRuns, out: Tensor, *, start: int, rope: RopeGrid | None
) -> None:
    """See `decode.decode`."""
    page, row, position = runs.slots()
    rows = _decode_rows(pages, page, row)
    if rope is not None:
        rows = rotate(rows, *rope.rows(position))
    out[:, start : start + rows.shape[0]] = rows.transpose(0, 1)


def _decode_rows(pages: CodedPages, page: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
    """fp32 [tokens, heads, head_dim]."""
    device = pages.codes.device
    used, places = np.unique(pages.slot_of_page[page], return_inverse=True)
    centroids, widths = pages.codebooks.gather(used)
    book = torch.from_numpy(places).to(device)
    at_page, at_row = torch.from_numpy(page).to(device), torch.from_numpy(row).to(device)
    rows = _decode_codes(pages, at_page, at_row, widths[book])
    head = torch.arange(pages.num_heads, device=device)
    for stage in range(pages.spec.stages):
        ids = pages.ids[at_page, :, stage, at_row].long()
        rows = rows + centroids[book[:, None], head, stage, ids]
    if pages.refinement is not None:
        refined = torch.from_numpy(pages.refinement.page_of[page]).to(device).long()
        has_one = refined >= 0
        rows[has_one] += _decode_codes(
            pages.refinement_pages(), refined[has_one], at_row[has_one], widths[book[has_one]]
        )
    return rows


def _decode_codes(pages: CodedPages, page: Tensor, row: Tensor, widths: Tensor) -> Tensor:
    """Levels times scales and widths [tokens, heads, head_dim], fp32 of the same shape."""
    groups = torch.from_numpy(pages.channel_groups).to(page.device).long()
    codes = unpack(pages.codes[page, :, row], pages.spec.bits, pages.head_dim)
    scales = _scale_values(pages.scales[page, :, row])
    rows = _code_levels(codes, pages.spec) * scales[..., groups]
    return rows * widths if pages.codebooks.has_widths else rows


def _trellis_codes(
    residual: Tensor, widths: Tensor | None, pages: CodedPages
) -> tuple[Tensor, Tensor]:
    """Scales [heads, tokens, groups], as they are stored, and codes [heads, tokens, head_dim]."""
    spec = pages.spec
    channels = torch.from_numpy(pages.group_channels).to(residual.device)
    groups = torch.from_numpy(pages.channel_groups).to(residual.device).long()
    weights = torch.ones_like(residual[:, :1]) if widths is None else widths.float()[:, None]
    grouped, group_weights = residual[..., channels], weights[..., channels]
    top = torch.tensor(spec.top, device=residual.device)
    peak = ((grouped / group_weights).abs().amax(dim=-1) / top).double()
    energy = _sum(grouped.double().square()) / _sum(group_weights.double().square())
    spread = spec.normal_scale * energy.sqrt()
    is_searched = spec.scale_rule == "searched"
    candidates = {
        "absmax": [peak],
        "spread": [spread],
        "searched": [spread, (spread * peak).sqrt(), peak],
    }[spec.scale_rule]
    best, best_codes, best_error = None, None, None
    wanted = group_error = torch.empty_like(peak)
    for attempt in range(len(candidates) + is_searched):
        value = candidates[attempt] if attempt < len(candidates) else wanted
        scales = _to_scales(value.float(), spec)
        steps = _scale_values(scales)[..., groups]
        codes = trellis.choose_codes(
            residual.flatten(0, 1),
            (steps * weights).flatten(0, 1),
            _levels(spec, residual.device),
            spec.bits,
        ).view(residual.shape)
        levels = _code_levels(codes, spec)
        left = residual - levels * steps * weights
        error = _sum(left.double().square()[..., channels])
        along = (levels * weights).double()[..., channels]
        product, square = _sum(grouped.double() * along), _sum(along * along)
        is_fit = (product > 0) & (square > 0)
        fitted = torch.where(is_fit, product / square, _scale_values(scales).double())
        is_better = torch.ones_like(peak, dtype=torch.bool) if not attempt else error < group_error
        wanted = torch.where(is_better, fitted, wanted)
        group_error = torch.where(is_better, error, group_error)
        total = _sum(error)
        if best is None or best_codes is None or best_error is None:
            best, best_codes, best_error = scales, codes, total
            continue
        row_is_better = (total < best_error)[..., None]
        best = torch.where(row_is_better, scales, best)
        best_codes = torch.where(row_is_better, codes, best_codes)
        best_error = torch.minimum(total, best_error)
    assert best is not None
    assert best_codes is not None
    return best, best_codes


def _stored_scales(residual: Tensor, weights: Tensor, spec: CodecSpec) -> Tensor:
    """The scales of a residual [heads, tokens, groups, group], in the dtype they are stored in."""
    normal = residual / weights
    # A tensor: on a GPU, a number would be divided by through its reciprocal.
    top = torch.tensor(spec.top, device=residual.device)
    peak = normal.abs().amax(dim=-1)
    if spec.scale_rule == "absmax":
        # The published floor of 1e-10 is lost when the scale is rounded.
        return _to_scales(peak / top, spec)
    spread = _sum(residual.double().square()) / _sum(weights.double().square())
    spread = spec.normal_scale * spread.sqrt()
    if spec.scale_rule == "spread":
        return _to_scales(spread.float(), spec)
    candidates = [
        *(spread * factor for factor in SPREAD_FACTORS),
        *(peak.double() / top.double() * factor for factor in PEAK_FACTORS),
    ]
    best = _to_scales(candidates[0].float(), spec)
    best_error = _error(residual, weights, best, spec)
    for candidate in candidates[1:]:
        best, best_error = _better(residual, weights, best, best_error, candidate, spec)
    levels = _levels(spec, residual.device)[_nearest(normal, _scale_values(best), spec)]
    along = (levels * weights).double()
    product, square = _sum(residual.double() * along), _sum(along * along)
    fitted = torch.where((product > 0) & (square > 0), product / square, _scale_values(best))
    return _better(residual, weights, best, best_error, fitted, spec)[0]


def _better(
    residual: Tensor,
    weights: Tensor,
    best: Tensor,
    best_error: Tensor,
    candidate: Tensor,
    spec: CodecSpec,
) -> tuple[Tensor, Tensor]:
    scales = _to_scales(candidate.float(), spec)
    error = _error(residual, weights, scales, spec)
    is_better = error < best_error
    return torch.where(is_better, scales, best), torch.where(is_better, error, best_error)


def _error(residual: Tensor, weights: Tensor, scales: Tensor, spec: CodecSpec) -> Tensor:
    """fp64 [heads, tokens, groups]: the squared error with these scales."""
    values = _scale_values(scales)
    levels = _levels(spec, residual.device)[_nearest(residual / weights, values, spec)]
    return _sum((residual - levels * values[..., None] * weights).double().square())


def _nearest(normal: Tensor, scales: Tensor, spec: CodecSpec) -> Tensor:
    """Codes, int64, of [..., groups, group] with the scales [..., groups]."""
    ratio = normal / scales[..., None]
    codes = torch.zeros(normal.shape, dtype=torch.int64, device=normal.device)
    for threshold in spec.thresholds:
        codes += ratio > threshold
    return codes


def _sum(x: Tensor) -> Tensor:
    """The sum over the last axis in the order of its elements, as the CPU kernel adds."""
    total = torch.zeros_like(x[..., 0])
    for i in range(x.shape[-1]):
        total = total + x[..., i]
    return total


def _code_levels(codes: Tensor, spec: CodecSpec) -> Tensor:
    """The levels, fp32, that codes uint8 [..., head_dim] mean."""
    if spec.trellis:
        return _levels(spec, codes.device)[trellis.level_indices(codes, spec.bits)]
    return _levels(spec, codes.device)[codes.long()]


def _levels(spec: CodecSpec, device: torch.device) -> Tensor:
    return torch.tensor(spec.levels, dtype=torch.float32, device=device)


def _to_scales(values: Tensor, spec: CodecSpec) -> Tensor:
    if spec.scale_type == "e4m3":
        return to_e4m3(values)
    largest = torch.finfo(torch.float16).max
    return values.clamp(max=largest).to(torch.float16)


def _scale_values(scales: Tensor) -> Tensor:
    return from_e4m3(scales) if scales.dtype == torch.uint8 else scales.float()
