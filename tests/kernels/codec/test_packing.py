import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvg_engine.kernels.codec.packing import pack, pack_row, packed_size, unpack

BITS = (1, 2, 4)
CODES = st.sampled_from(BITS).flatmap(
    lambda bits: st.tuples(
        st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70)
    )
)


@given(CODES)
def test_byte_j_holds_every_channel_that_is_j_modulo_the_bytes(
    bits_and_codes: tuple[int, list[int]],
) -> None:
    bits, codes = bits_and_codes
    size = -(-len(codes) // (8 // bits))
    expected = [
        sum(code << (bits * plane) for plane, code in enumerate(codes[j::size]))
        for j in range(size)
    ]
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert packed.tolist() == expected
    assert packed_size(len(codes), bits) == size


@given(CODES)
def test_unpack_returns_what_was_packed(bits_and_codes: tuple[int, list[int]]) -> None:
    bits, codes = bits_and_codes
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(CODES)
def test_rows_are_packed_alike_in_numba(bits_and_codes: tuple[int, list[int]]) -> None:
    bits, codes = bits_and_codes
    packed = np.full(packed_size(len(codes), bits), 0xFF, np.uint8)
    pack_row(np.array(codes, np.uint8), bits, packed)
    assert packed.tolist() == pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist()


@pytest.mark.parametrize("bits", BITS)
def test_any_number_of_axes_is_packed_along_the_last(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 2, 4, 13), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 2, 4, packed_size(13, bits))
    assert torch.equal(packed[2, 1, 3], pack(codes[2, 1, 3], bits))
    assert torch.equal(unpack(packed, bits, 13), codes)
