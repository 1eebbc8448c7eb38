import pytest
import torch

from qvg_engine.quality.contenders.trits import pack_trits, trit_bytes, unpack_trits


@pytest.mark.parametrize(("channels", "size"), [(128, 26), (64, 13), (5, 1), (6, 2), (1, 1)])
def test_five_codes_to_a_byte_and_back(channels: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(3, (50, 2, channels), generator=generator, dtype=torch.uint8)
    packed = pack_trits(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (50, 2, size)
    assert trit_bytes(channels) == size
    assert packed.max() < 3**5
    assert torch.equal(unpack_trits(packed, channels), codes)


def test_the_first_channel_is_the_lowest_digit() -> None:
    codes = torch.tensor([2, 0, 1, 0, 0, 0, 1], dtype=torch.uint8)
    # Two bytes: channels 0, 2, 4, 6 and 1, 3, 5.
    assert pack_trits(codes).tolist() == [2 + 3 * 1 + 27 * 1, 0]
