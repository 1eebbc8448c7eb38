"""With a GPU's kernels, interpreted: nothing waits within a step, and tiles are read as pages."""

from typing import Any

import pytest
import torch

from qvg_engine.kernels import gpu
from tests.models.worldplay.toy import (
    KINDS,
    TEXT_DIM,
    make_engine,
    make_family,
    make_request,
    random,
)
from tests.qvg_engine.test_no_waits import HOST_ONLY, Watch, watch

__all__ = ["watch"]

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")

# Cameras and points are on the host: requests see to it.
HOST = HOST_ONLY | {"qvg_engine.models.worldplay.memory:_distances"}


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_reads_within_a_step(watch: Watch, kind: str) -> None:
    with gpu.cpu_as_gpu(), torch.no_grad(), watch.off():
        family = make_family(kind, timesteps=(1000.0,), window_frames=16, sink_frames=0)
        engine = make_engine(family, kv_format="bf16", page_size=32)
        engine._lags = True
        engine.add_request(
            make_request(
                kind,
                chunks=5,
                pose="right-12,left-7",
                guidance_scale=2.0,
                negative_prompt_embeds=random(1, 2, TEXT_DIM),
            )
        )
        chunks = steps = 0
        while engine.has_unfinished_requests():
            if steps == 2:
                engine.update_request("a", prompt_embeds=random(2, 3, TEXT_DIM))
            watch.is_on = True
            outputs = engine.step()
            watch.is_on = False
            steps += 1
            for output in outputs:
                assert output.error is None
                chunks += output.latents is not None
        assert chunks == 5
    assert watch.readers == HOST


@pytest.mark.parametrize("kind", KINDS)
def test_pages_that_are_decoded_in_tiles(kind: str, run: Any) -> None:
    """The rotated read decodes inside of attention, the projected one to the workspace."""
    found = []
    for backend in ("workspace", "fused"):
        with gpu.cpu_as_gpu(), torch.no_grad():
            family = make_family(kind, head_dim=64, timesteps=(1000.0,))
            engine = make_engine(family, kv_format="qvg", page_size=32, attention_backend=backend)
            found.append(run(engine, make_request(kind, chunks=2, pose="w-7")).latents("a"))
    assert float((found[0] - found[1]).abs().max()) <= 1e-4
