import msgspec
import pytest
import torch
from torch import Tensor

from qvg_engine import VideoEngine, VideoRequest
from qvg_engine.block_manager.page_store import PageStore
from qvg_engine.kernels.rope.layout import to_interleaved
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.contender import Contender, RoundTrip
from qvg_engine.quality.contenders.registry import contender
from qvg_engine.quality.recorder import record_video
from qvg_engine.quality.simulated_pages import needs_codebook, simulated_pages
from tests.qvg_engine.quality.conftest import CONFIG, PROMPT

DENSE = msgspec.structs.replace(CONFIG, kv_format="dense")


class Halved:
    """Reads back half of K, and V less one."""

    name = "halved"

    def round_trip(self, rows: Tensor, *, is_key: bool, seed: int, centroids: int) -> RoundTrip:
        return RoundTrip(rows / 2 if is_key else rows - 1, 1.0, 0.0)


def test_pages_hold_what_is_read_back(pocket: ModelFamily) -> None:
    """The first chunk reads no cache, so that its K and V are the same whatever is stored."""
    request = VideoRequest(
        request_id="a", prompt=PROMPT, num_frames=12, output="latents", trace=True
    )
    capture = record_video(pocket, DENSE, request)
    engine = VideoEngine(DENSE, family=pocket)
    engine.add_request(request)
    with simulated_pages(Halved()):
        outputs = [output for _ in range(6) for output in engine.step()]
    trace = outputs[-1].trace
    assert trace is not None
    assert len(capture.layers) == len(trace.caches[0])
    for layer, cache in zip(capture.layers.values(), trace.caches[0], strict=True):
        assert torch.equal(to_interleaved(layer.keys / 2), cache.keys)
        assert torch.equal(layer.values - 1, cache.values)


def test_the_store_is_itself_again_afterwards() -> None:
    write = PageStore.write

    def stop() -> None:
        with simulated_pages(Halved()):
            assert PageStore.write is not write
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert PageStore.write is write


@pytest.mark.parametrize(
    ("name", "needs"), [("rtn2-asym", False), ("kivi2", False), ("quarot2", False), ("q2", True)]
)
def test_what_tokens_share(name: str, needs: bool) -> None:
    item: Contender = contender(name)
    assert needs_codebook(item, heads=2, head_dim=128) is needs
