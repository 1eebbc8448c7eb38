"""Three-valued codes, five to a byte: 1.6 bits each, since 3**5 is 243."""

import torch
from torch import Tensor

TRITS_PER_BYTE = 5


def trit_bytes(count: int) -> int:
    """Bytes of so many codes."""
    return -(-count // TRITS_PER_BYTE)


def pack_trits(codes: Tensor) -> Tensor:
    """Codes uint8 [..., channels], all below 3, to uint8 [..., bytes].

    With W bytes, byte j holds the channels j, j + W, j + 2 * W and so on, the first as its lowest
    digit; channels are padded with code 0 to a multiple of 5.
    """
    size = trit_bytes(codes.shape[-1])
    padding = size * TRITS_PER_BYTE - codes.shape[-1]
    digits = torch.nn.functional.pad(codes, (0, padding)).unflatten(-1, (TRITS_PER_BYTE, size))
    packed: Tensor = (digits * _powers(codes.device)).sum(dim=-2).to(torch.uint8)
    return packed


def unpack_trits(packed: Tensor, num_channels: int) -> Tensor:
    """What `pack_trits` was given: codes uint8 [..., channels]."""
    digits = packed[..., None, :].int() // _powers(packed.device) % 3
    codes: Tensor = digits.to(torch.uint8).flatten(-2)
    return codes[..., :num_channels]


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([[3**i] for i in range(TRITS_PER_BYTE)], device=device)
