"""A capture of the embedded model, and one that is drawn."""

import msgspec
import pytest
import torch

from qvg_engine import EngineConfig, VideoRequest
from qvg_engine.loading import load_family
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.capture import Capture, CaptureInfo, LayerCapture
from qvg_engine.quality.recorder import record_video
from tests.conftest import SHIPPED_CASES

CONFIG = EngineConfig(device="cpu", kv_format="bf16", kv_memory=32 * 2**20, max_streams=1)
PROMPT = "a red circle over a green background, camera moving left"
LAYERS = (1, 4)
SHIPPED_CAPTURE = (
    SHIPPED_CASES
    / "captures"
    / "a-red-circle-over-a-green-background-camera-moving-left-seed0.safetensors"
)
"""Real rows of one layer and head, see the README beside it."""


@pytest.fixture(scope="session")
def pocket() -> ModelFamily:
    return load_family(CONFIG)


@pytest.fixture(scope="session")
def capture(pocket: ModelFamily) -> Capture:
    """Two layers of five chunks, with a window of three."""
    config = msgspec.structs.replace(CONFIG, window_frames=9)
    request = VideoRequest(
        request_id="a", prompt=PROMPT, num_frames=60, seed=3, output="latents", trace=True
    )
    return record_video(load_family(config), config, request, layers=LAYERS)


def drawn_capture(*, heads: int = 2, window: int | None = None) -> Capture:
    """Normal rows of one layer, three chunks of 12 tokens in frames of 2 by 3."""
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> torch.Tensor:
        return torch.randn(36, count, 16, generator=generator)

    info = CaptureInfo(
        model="drawn", prompt="", seed=0, window_tokens=window, sink_tokens=0, grid=(2, 3)
    )
    layer = LayerCapture(queries=rows(heads), keys=rows(2), values=rows(2))
    return Capture(info=info, chunk_tokens=(12, 12, 12), layers={0: layer})
