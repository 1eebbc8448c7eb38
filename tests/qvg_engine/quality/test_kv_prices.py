"""Bits are those that the engine counts, and a capacity keeps to them."""

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, PageFormat, get_format
from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.quality.kv_prices import (
    CANDIDATES,
    OVERHEADS,
    KvPrices,
    StreamSize,
    kv_prices,
    stream_size,
)
from tests.qvg_engine.quality.conftest import CONFIG
from tests.qvg_engine.test_process_memory import tiny_family

NUM_LAYERS = 3
Q2 = LayerFormats(keys=get_format("q2"), values=get_format("q2"))


def make_prices(
    size: StreamSize, *, max_live: int = 2, overheads: tuple[float, ...] = OVERHEADS
) -> KvPrices:
    layout = CacheLayout(
        geometry=CacheGeometry(num_layers=NUM_LAYERS, num_kv_heads=2, head_dim=128),
        page_size=64,
        formats=(Q2,),
        compute_itemsize=4,
        codebook_overhead=0.33,
        max_live_codebooks=max_live,
    )
    return KvPrices(layout, size, overheads=overheads)


def size_of(num_tokens: int) -> StreamSize:
    return StreamSize(
        num_tokens=num_tokens, num_pages=-(-num_tokens // 64), num_sets=1, chunk_pages=3
    )


@pytest.fixture(scope="module")
def tiny() -> WanFamily:
    return tiny_family()


def test_candidates_differ() -> None:
    assert len({item.codec for item in CANDIDATES}) == len(CANDIDATES)
    sizes = {item.name: 8 * item.row_bytes(128, 4) / 128 for item in CANDIDATES}
    assert sizes["q1-lean"] == 1.125
    assert sizes["q2-lean"] == 2.125


@pytest.mark.parametrize("num_frames", [36, 96, 400])
@pytest.mark.parametrize("full_history", [False, True], ids=["window", "full history"])
def test_bits_are_what_the_engine_counts(
    tiny: WanFamily, num_frames: int, full_history: bool
) -> None:
    settings = tiny.settings
    if full_history:
        settings = msgspec.structs.replace(settings, window_frames=None)
    family = WanFamily(tiny.network, settings, codec=tiny.codec, prompt_encoder=tiny.prompt_encoder)
    config = EngineConfig(device="cpu", kv_memory=16 * 2**20)
    prices = kv_prices(family, config, num_frames=num_frames)
    layers = (LayerFormats(keys=CANDIDATES[0], values=CANDIDATES[-1]),)
    allocation = prices.allocation(layers, 0.18)
    assert allocation.refinement_overhead == (0.025 if full_history else 0.133)
    engine = VideoEngine(msgspec.structs.replace(config, kv_format=allocation), family=family)
    engine.add_request(
        VideoRequest(request_id="a", prompt="a red circle", num_frames=num_frames, output="latents")
    )
    while engine.has_unfinished_requests():
        engine.step()
    assert 16 / engine.stats().kv_ratio == pytest.approx(float(prices.bits(layers, 0.18)))


def test_a_video_that_keeps_nothing_counts_as_one_that_does(pocket: ModelFamily) -> None:
    short = stream_size(pocket, CONFIG, num_frames=3)
    assert short == stream_size(pocket, CONFIG, num_frames=24)
    assert short == StreamSize(num_tokens=192, num_pages=3, num_sets=1, chunk_pages=3)


def test_pages_that_are_part_full_are_counted(pocket: ModelFamily) -> None:
    config = msgspec.structs.replace(CONFIG, page_size=128)
    size = stream_size(pocket, config, num_frames=48)
    assert (size.num_tokens, size.num_pages) == (576, 6)


@given(
    data=st.data(),
    num_tokens=st.integers(1, 100_000),
    max_live=st.integers(1, 16),
    overhead=st.floats(0.01, 2.0),
)
def test_what_is_within_the_capacity_is_within_the_bits(
    data: st.DataObject, num_tokens: int, max_live: int, overhead: float
) -> None:
    prices = make_prices(size_of(num_tokens), max_live=max_live, overheads=(overhead,))
    formats = [data.draw(st.sampled_from(CANDIDATES)) for _ in range(2 * NUM_LAYERS)]
    layers = tuple(
        LayerFormats(keys=keys, values=values)
        for keys, values in zip(formats[::2], formats[1::2], strict=True)
    )
    low, high = prices.least_bits, prices.most_bits
    kv_bits = low + (high - low) * Fraction(data.draw(st.floats(0, 1)))
    row_bytes = sum(item.row_bytes(128, 4) for item in formats)
    if row_bytes <= prices.capacity(kv_bits, overhead):
        assert prices.bits(layers, overhead) <= kv_bits


@pytest.mark.parametrize("num_tokens", [64, 1000, 3072, 50_000])
def test_least_and_most_can_be_had(num_tokens: int) -> None:
    prices = make_prices(size_of(num_tokens))
    parts = 2 * NUM_LAYERS
    at_least = [prices.capacity(prices.least_bits, item) for item in OVERHEADS]
    assert max(at_least) == parts * min(prices.row_bytes)
    at_most = [prices.capacity(prices.most_bits, item) for item in OVERHEADS]
    assert min(at_most) >= parts * max(prices.row_bytes)


def test_bits_outside_are_refused_and_what_is_named_is_allowed() -> None:
    prices = make_prices(size_of(3072))
    for given_bits in (1.0, 99.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"--kv-bits is .*from 1\.\d+ to 4\.\d+") as caught:
            prices.check(given_bits, name="--kv-bits")
    words = str(caught.value).split()
    low, high = float(words[words.index("from") + 1]), float(words[words.index("to") + 1])
    assert prices.check(low, name="a") < prices.check(high, name="a")


def test_centroids_are_those_of_the_budget() -> None:
    prices = make_prices(size_of(3072))
    assert [prices.centroids(get_format("q2"), item) for item in OVERHEADS] == [11, 23, 36]
    assert [prices.centroids(get_format("q1"), item) for item in OVERHEADS] == [5, 11, 18]
    rich = make_prices(size_of(3_000_000))
    assert rich.centroids(PageFormat(name="q2", codec=get_format("q2").codec), 0.33) == 256
