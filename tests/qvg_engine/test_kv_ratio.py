"""How much smaller the pages are than bf16, and what codebooks may take, by length and format.

These figures depend on token counts alone, not on what a network computes: the embedded model's
frames, window, VAE and prompts stand around a random network of one layer, which is quick.
"""

from typing import Any

import msgspec
import pytest

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.models.wan.family import WanFamily
from tests.qvg_engine.test_process_memory import tiny_family

CHUNK_FRAMES = 12
"""Pixel frames of a chunk."""
CODED = ("qvg", "qvg-pro", "q4", "q2", "q1")
PROMPT = "a red circle over a green background"


@pytest.fixture(scope="module")
def tiny() -> WanFamily:
    """A random network of one layer and head in the place of the embedded one."""
    return tiny_family()


def make_engine(tiny: WanFamily, *, full_history: bool = False, **config: Any) -> VideoEngine:
    settings = tiny.settings
    if full_history:
        settings = msgspec.structs.replace(settings, window_frames=None)
    family = WanFamily(tiny.network, settings, codec=tiny.codec, prompt_encoder=tiny.prompt_encoder)
    given = {"device": "cpu", "kv_memory": 16 * 2**20, **config}
    return VideoEngine(EngineConfig(**given), family=family)


def run(engine: VideoEngine, *, chunks: int, streams: int = 1) -> None:
    for number in range(streams):
        request = VideoRequest(
            request_id=str(number),
            prompt=PROMPT,
            num_frames=CHUNK_FRAMES * chunks,
            seed=number,
            output="latents",
        )
        engine.add_request(request)
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None, output.error
    engine.check_integrity()


@pytest.mark.parametrize(("kv_format", "least"), [("q2", 6.0), ("qvg", 6.0), ("q1", 9.0)])
def test_four_windowed_streams(tiny: WanFamily, kv_format: str, least: float) -> None:
    window = tiny.settings.window_frames
    assert window is not None
    engine = make_engine(tiny, kv_format=kv_format)
    run(engine, chunks=window // 3 + 2, streams=4)
    stats = engine.stats()
    assert stats.kv_bytes_bf16 == 4 * window * 64 * 2 * 2 * 128, "four full windows"
    assert stats.kv_ratio >= least


@pytest.mark.parametrize(("kv_format", "least"), [("q2", 6.8), ("qvg", 6.8), ("q1", 10.0)])
def test_one_long_stream_with_all_its_history(
    tiny: WanFamily, kv_format: str, least: float
) -> None:
    engine = make_engine(tiny, full_history=True, kv_format=kv_format)
    run(engine, chunks=85)
    stats = engine.stats()
    assert stats.kv_bytes_bf16 >= 16_000 * 2 * 2 * 128
    assert stats.kv_ratio >= least


@pytest.mark.parametrize("full_history", [False, True], ids=["window", "full history"])
@pytest.mark.parametrize("kv_format", CODED)
def test_short_videos_keep_to_the_budget(
    tiny: WanFamily, kv_format: str, full_history: bool
) -> None:
    """Whatever the length, a video runs, and reserves what its tokens pay for."""
    for chunks in (1, 2, 3, 4, 6, 10):
        engine = make_engine(tiny, full_history=full_history, kv_format=kv_format)
        run(engine, chunks=chunks)
        stats, layout = engine.stats(), engine._cache.layout
        assert layout.budget is not None
        smallest = layout.budget.min_rows * layout.codebook_row_bytes
        within = layout.codebook_overhead * stats.kv_bytes_bf16 / 16
        assert stats.codebook_bytes <= max(within, smallest if chunks > 1 else 0)
        assert (stats.codebook_bytes > 0) == (chunks > 1), "one chunk alone is never read"
