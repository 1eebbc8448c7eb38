"""A calibration is as long as it is asked to be, and refuses bits before it begins."""

import pytest

from qvg_engine.block_manager.format import LayerFormats
from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.calibration import (
    CalibrationSettings,
    calibrate,
    chunks_to_calibrate,
    frames_of_chunks,
)
from qvg_engine.quality.kv_prices import CANDIDATES, KvPrices, kv_prices
from tests.qvg_engine.quality.conftest import CONFIG, PROMPT


def test_no_more_chunks_than_the_videos_have(pocket: ModelFamily) -> None:
    assert [chunks_to_calibrate(pocket, num_frames=n) for n in (1, 12, 30, 96, 1000)] == [
        2,
        2,
        3,
        8,
        8,
    ]


@pytest.mark.parametrize("num_chunks", [1, 2, 5])
def test_frames_of_chunks_are_the_most(pocket: ModelFamily, num_chunks: int) -> None:
    assert pocket.codec is not None
    num_frames = frames_of_chunks(pocket, num_chunks)
    assert pocket.codec.latent_frames(num_frames) == 3 * num_chunks
    assert pocket.codec.latent_frames(num_frames + 1) == 3 * num_chunks + 1


def test_every_video_is_captured_and_measured_in_turn(pocket: ModelFamily) -> None:
    config = CONFIG
    whole = kv_prices(pocket, config, num_frames=24)
    layout = whole.layout((LayerFormats(keys=CANDIDATES[0], values=CANDIDATES[0]),), 0.18)
    prices = KvPrices(layout, whole.size, candidates=CANDIDATES[:2], overheads=(0.18,))
    told: list[tuple[str, int, int]] = []
    settings = CalibrationSettings(
        prompts=(PROMPT, PROMPT),
        seed=1,
        kv_bits=float(prices.least_bits) + 0.01,
        num_frames=24,
        num_chunks=2,
    )
    choice = calibrate(pocket, config, prices, settings, progress=lambda *news: told.append(news))
    assert choice.bits <= settings.kv_bits
    names = list(dict.fromkeys(what for what, _, _ in told))
    assert names == [
        "calibration video 1",
        "calibration of formats 1",
        "calibration of layers 1",
        "calibration video 2",
        "calibration of formats 2",
        "calibration of layers 2",
    ]
    assert [news for news in told if news[0] == names[0]][-1] == (names[0], 2, 2)
    assert [news for news in told if news[0] == names[4]][-1] == (names[4], 12, 12)
    assert told[-1] == (names[5], 13, 13)


def test_bits_are_refused_before_anything_is_made(pocket: ModelFamily) -> None:
    prices = kv_prices(pocket, CONFIG, num_frames=36)
    told: list[str] = []
    settings = CalibrationSettings(prompts=(PROMPT,), seed=0, kv_bits=0.5, num_frames=36)
    with pytest.raises(ConfigError, match=r"kv_bits is 0\.5"):
        calibrate(pocket, CONFIG, prices, settings, progress=lambda what, *_: told.append(what))
    assert told == []
