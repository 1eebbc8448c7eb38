"""How long a step takes, and what of it is the engine's own.

    pytest benchmarks/test_step.py

Random weights at the embedded model's size; four streams, each with a full window of 48 latent
frames. Compare within one run: absolute times are the machine's.
"""

from typing import Any

import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.network import WanNetwork

NUM_STREAMS = 4
PASSES_PER_CHUNK = 5
WINDOW_FRAMES = 48


def make_engine(**config: Any) -> VideoEngine:
    """An engine whose streams are all past their first full window."""
    torch.manual_seed(0)
    sizes = WanConfig(
        dim=256, ffn_dim=768, num_heads=2, num_layers=6, text_dim=64, patch_size=(1, 1, 1)
    )
    network = WanNetwork(sizes).eval().requires_grad_(False)
    settings = RolloutSettings(latent_shape=(16, 8, 8), window_frames=WINDOW_FRAMES, text_len=16)
    engine = VideoEngine(
        EngineConfig(device="cpu", **config), family=WanFamily(network, settings, name="random")
    )
    for number in range(NUM_STREAMS):
        engine.add_request(
            VideoRequest(
                request_id=f"stream-{number}",
                prompt_embeds=torch.randn(9, 64),
                noise=torch.randn(3000, 16, 8, 8),
                context_latents=torch.randn(WINDOW_FRAMES, 16, 8, 8),
                output="latents",
            )
        )
    while not any(output.chunk_index == 0 for output in engine.step()):
        pass
    return engine


@pytest.mark.benchmark(group="one chunk of four streams (five steps)")
@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"kv_format": "dense"}, id="dense"),
        pytest.param({"kv_format": "bf16"}, id="bf16"),
        pytest.param({"kv_format": "bf16", "batch_invariant": True}, id="bf16-invariant"),
        pytest.param({"kv_format": "bf16", "attention_backend": "reference"}, id="bf16-reference"),
    ],
)
def test_chunk(benchmark: Any, config: dict[str, Any]) -> None:
    engine = make_engine(**config)

    def chunk() -> None:
        for _ in range(PASSES_PER_CHUNK):
            engine.step()

    benchmark.pedantic(chunk, rounds=5, warmup_rounds=1)
    assert engine.stats().mean_streams_per_step == NUM_STREAMS


@pytest.mark.benchmark(group="a step's bookkeeping, without network and attention")
def test_bookkeeping(benchmark: Any) -> None:
    """What is left of a step when the forward returns at once."""
    engine = make_engine(kv_format="bf16")

    def no_forward(passes: Any, attention: Any, **options: Any) -> list[torch.Tensor]:
        return [torch.zeros_like(item.latents) for item in passes]

    engine.family.forward = no_forward  # type: ignore[method-assign]
    benchmark.pedantic(engine.step, rounds=200, warmup_rounds=5)
