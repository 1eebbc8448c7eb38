"""Trellis-coded levels: twice as many levels as codes, half of which a channel can choose from.

The channels of a row are taken byte by byte, and in a byte from the lowest bits on. Let u be the
lowest bit of each channel's code in that order, 0 before the first. Then

    y1 = u(t) ^ u(t - 1) ^ u(t - 3)         y0 = u(t - 2)
    level = levels[4 * (code >> 1) + 2 * y1 + y0]

So the bits before a channel say which half of the levels it has, those of one y0, and its own code
which of them. Levels of a half lie twice as far apart as all levels, as those of a plain code of
as many bits do; but whoever encodes may choose, by the codes before, which half a channel gets. The
best sequence is found by Viterbi's algorithm over 8 states, the last three u. (Trellis-coded
quantisation: Marcellin and Fischer, 1990; the code is Ungerboeck's for 8 states, without feedback,
so that decoding needs no state but a few bits of the bytes before.)

For normally distributed numbers the squared error is 0.9 dB less than that of the best plain code
of 2 bits, and 0.7 dB less with 1 bit.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STATES: Final = 8


def channel_order(head_dim: int, bits: int) -> NDArray[np.int64]:
    """The channels [head_dim] in the order of the trellis."""
    planes = 8 // bits
    assert head_dim % planes == 0, (head_dim, bits)
    return np.arange(head_dim).reshape(planes, -1).T.reshape(-1).copy()


def transitions() -> NDArray[np.int64]:
    """Which of the four 2 * y1 + y0 leads from a state to the next by u: int64 [STATES, 2].

    Bit k - 1 of a state is u(t - k); the next state is (2 * state + u) % STATES.
    """
    subsets = np.empty((STATES, 2), np.int64)
    for state in range(STATES):
        for u in (0, 1):
            y1 = u ^ (state & 1) ^ (state >> 2)
            subsets[state, u] = 2 * y1 + (state >> 1 & 1)
    return subsets


def level_indices(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., head_dim] to the indices of their levels, int64 of the same shape."""
    order = torch.from_numpy(channel_order(codes.shape[-1], bits)).to(codes.device)
    code = codes.long()[..., order]
    u = torch.nn.functional.pad(code & 1, (3, 0))
    y1 = u[..., 3:] ^ u[..., 2:-1] ^ u[..., :-3]
    y0 = u[..., 1:-2]
    indices = torch.empty_like(code)
    indices[..., order] = 4 * (code >> 1) + 2 * y1 + y0
    return indices


def choose_codes(residual: Tensor, steps: Tensor, levels: Tensor, bits: int) -> Tensor:
    """The codes uint8 [rows, head_dim] with the least squared error of each row.

    Args:
        residual: fp32 [rows, head_dim].
        steps: fp32 [rows, head_dim], what a channel's levels are multiplied with.
        levels: fp32 [2 ** (bits + 1)].
        bits: of a code.

    Errors are added up in fp32 in the order of the trellis. Of equal ones the lower level, the
    earlier state with the lower number, and the lower last state are taken.
    """
    num_rows, head_dim = residual.shape
    order = channel_order(head_dim, bits).tolist()
    subsets = transitions()
    cost = residual.new_full((num_rows, STATES), torch.inf)
    cost[:, 0] = 0
    chosen, came_from = [], []
    for channel in order:
        left = residual[:, channel, None] - levels * steps[:, channel, None]
        errors = (left * left).view(num_rows, -1, 4)
        high = errors.argmin(dim=1)
        nearest = errors.gather(1, high[:, None])[:, 0]
        new, before = torch.empty_like(cost), torch.empty_like(cost, dtype=torch.bool)
        for state in range(STATES):
            u, first, second = state & 1, state >> 1, state >> 1 | STATES >> 1
            one = cost[:, first] + nearest[:, int(subsets[first, u])]
            other = cost[:, second] + nearest[:, int(subsets[second, u])]
            before[:, state] = other < one
            new[:, state] = torch.where(before[:, state], other, one)
        cost = new
        chosen.append(high)
        came_from.append(before)
    return _trace_back(cost.argmin(dim=1), chosen, came_from, order)


def _trace_back(
    state: Tensor, chosen: list[Tensor], came_from: list[Tensor], order: list[int]
) -> Tensor:
    """Codes of the paths that end in `state` [rows]."""
    subsets = torch.from_numpy(transitions()).to(state.device)
    codes = torch.empty(len(state), len(order), dtype=torch.uint8, device=state.device)
    for channel, high, before in reversed(list(zip(order, chosen, came_from, strict=True))):
        u = state & 1
        second = before.gather(1, state[:, None])[:, 0].long()
        state = state >> 1 | second * (STATES >> 1)
        subset = subsets[state, u]
        codes[:, channel] = (2 * high.gather(1, subset[:, None])[:, 0] + u).to(torch.uint8)
    return codes
