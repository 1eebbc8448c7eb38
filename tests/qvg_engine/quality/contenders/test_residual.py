import msgspec
import pytest
import torch

from qvg_engine.kernels.codec import CodecSpec
from qvg_engine.quality.contenders.residual import ChannelGroups, ResidualFormat, TokenGroups
from qvg_engine.quality.figures import decibels
from qvg_engine.quality.format_errors import squared_error
from tests.qvg_engine.quality.contenders.conftest import normal_rows

FOUR = CodecSpec(
    stages=0,
    centroids=1,
    bits=2,
    levels=(-0.625, -0.1875, 0.1875, 0.625),
    group=64,
    scale_rule="searched",
    scale_type="e4m3",
    channel_widths=False,
    centroid_type="float16",
)
TERNARY = msgspec.structs.replace(FOUR, levels=(-1.0, 0.0, 1.0))
SIGNS = msgspec.structs.replace(FOUR, bits=1, levels=(-1.0, 1.0))
WIDTHS = msgspec.structs.replace(FOUR, channel_widths=True)


def gain(residual_format: ResidualFormat, rows: torch.Tensor) -> float:
    """In dB."""
    read = residual_format.fit(rows, is_key=False).read_back(rows)
    return -decibels(squared_error(read, rows))


@pytest.mark.parametrize(
    ("residual_format", "expected"),
    [
        (TokenGroups(spec=FOUR), 9.4),
        (TokenGroups(spec=WIDTHS), 9.4),
        (TokenGroups(spec=TERNARY, trits=True), 7.3),
        (TokenGroups(spec=SIGNS), 4.4),
        (ChannelGroups(spec=FOUR, block=64), 9.4),
        (ChannelGroups(spec=SIGNS, block=64), 4.4),
    ],
)
def test_normal_numbers_lose_what_theory_says(
    residual_format: ResidualFormat, expected: float
) -> None:
    """The best quantisers of 4, 3 and 2 levels: 9.30, 7.22 and 4.40 dB; scales add a little."""
    assert gain(residual_format, normal_rows(640)) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("is_key", [False, True])
def test_trits_read_back_as_two_bits_do(is_key: bool) -> None:
    rows = normal_rows(70)
    plain, trits = (
        TokenGroups(spec=TERNARY, trits=trits).fit(rows, is_key=is_key) for trits in (False, True)
    )
    assert torch.equal(plain.read_back(rows), trits.read_back(rows))
    assert plain.bits == 8 * (32 + 2) / 128
    assert trits.bits == 8 * (26 + 2) / 128


def test_bits_of_widths_are_spread_over_the_tokens() -> None:
    coder = TokenGroups(spec=WIDTHS).fit(normal_rows(70), is_key=True)
    assert coder.bits == 2 + 8 / 64
    assert coder.shared_bits == pytest.approx(16 / 70)
    assert TokenGroups(spec=FOUR).fit(normal_rows(70), is_key=True).shared_bits == 0


@pytest.mark.parametrize(
    ("tokens", "num_bytes"),
    # Codes of a whole block, and its scale; 6 tokens take 2 bytes and a scale.
    [(128, 2 * (16 + 1)), (70, (16 + 1) + (2 + 1)), (6, 2 + 1)],
)
def test_bits_of_channel_groups(tokens: int, num_bytes: int) -> None:
    coder = ChannelGroups(spec=FOUR, block=64).fit(normal_rows(tokens), is_key=True)
    assert coder.bits == pytest.approx(8 * num_bytes / tokens)
    assert coder.shared_bits == 0


def test_a_channel_has_the_scale_of_its_own_tokens() -> None:
    rows = normal_rows(70)
    coder = ChannelGroups(spec=FOUR, block=64).fit(rows, is_key=True)
    loud = rows.clone()
    loud[..., 9] *= 100
    loud[:64, :, 11] *= 100
    quiet, beside = coder.read_back(rows), coder.read_back(loud)
    same = [channel for channel in range(128) if channel not in (9, 11)]
    assert torch.equal(quiet[..., same], beside[..., same])
    assert torch.equal(quiet[64:, :, 11], beside[64:, :, 11])
    assert not torch.equal(quiet[64:, :, 9], beside[64:, :, 9])


def test_channels_of_different_size_call_for_widths_or_scales_of_their_own() -> None:
    rows = normal_rows(640) * torch.linspace(-2, 2, 128).exp()
    plain = gain(TokenGroups(spec=FOUR), rows)
    by_channel = gain(ChannelGroups(spec=FOUR, block=64), rows)
    widths = gain(TokenGroups(spec=WIDTHS), rows)
    assert by_channel == pytest.approx(9.4, abs=0.2)
    assert min(by_channel, widths) > plain + 2


def test_tokens_that_are_loud_at_times_call_for_scales_of_tokens() -> None:
    rows = normal_rows(640)
    rows[::7] *= 20
    assert gain(TokenGroups(spec=FOUR), rows) > gain(ChannelGroups(spec=FOUR, block=64), rows) + 2
