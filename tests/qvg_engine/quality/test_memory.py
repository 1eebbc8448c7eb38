import pytest

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.quality.comparison import quality_format
from qvg_engine.quality.memory import WAN_1_3B, memory_curve, shape_of
from tests.qvg_engine.quality.conftest import PROMPT


@pytest.mark.parametrize("name", ["bf16", "q2", "rtn2"])
def test_it_is_what_an_engine_holds(name: str) -> None:
    config = EngineConfig(
        device="cpu",
        kv_format=quality_format(name),
        kv_memory=16 * 2**20,
        max_streams=1,
        window_frames=9,
    )
    engine = VideoEngine(config)
    engine.add_request(VideoRequest(request_id="a", prompt=PROMPT, num_frames=48, output="latents"))
    while engine.has_unfinished_requests():
        engine.step()
    stats = engine.stats()
    shape = shape_of(engine.family)
    assert shape.window_frames == 9
    curve = memory_curve(shape, quality_format(name), windowed=True, seconds=[3.0])
    assert curve.page_bytes == (stats.kv_bytes_peak,)
    assert curve.codebook_bytes == (stats.codebook_bytes,)


def test_wan_in_bf16_by_hand() -> None:
    """184,320 bytes a token; 10 s are 41 latent frames, 14 chunks, of which 13 are committed."""
    curve = memory_curve(WAN_1_3B, quality_format("bf16"), windowed=False, seconds=[10.0])
    pages = 13 * -(-3 * 1560 // 64)
    assert curve.total_bytes == (pages * 64 * 184_320,)


def test_a_window_bounds_it_and_a_full_history_grows() -> None:
    lengths = [30.0, 60.0, 600.0]
    page_format = quality_format("q2")
    windowed = memory_curve(WAN_1_3B, page_format, windowed=True, seconds=lengths).total_bytes
    full = memory_curve(WAN_1_3B, page_format, windowed=False, seconds=lengths).total_bytes
    assert windowed[0] == windowed[1] == windowed[2]
    assert full[0] < full[1] < full[2]
    assert full[2] / full[1] == pytest.approx(10, rel=0.02)


def test_full_history_ratio_reaches_the_bar() -> None:
    def total(name: str) -> int:
        page_format = quality_format(name)
        return memory_curve(WAN_1_3B, page_format, windowed=False, seconds=[60]).total_bytes[0]

    assert total("bf16") / total("q2") > 6.8
    assert total("bf16") / total("q1") > 10
