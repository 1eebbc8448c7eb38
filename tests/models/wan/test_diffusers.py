"""The network against diffusers' implementation of the same architecture."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.models.wan.checkpoint import load_wan

SIZES = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 48,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 10,
    "freq_dim": 32,
    "ffn_dim": 80,
    "num_layers": 3,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 64,
}
TEXT_LEN = 7


@pytest.fixture(scope="module")
def transformer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import WanTransformer3DModel
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=["safetensors", "pt", "wrapped pt"])
def weights(request: Any, transformer: Any, tmp_path: Path) -> Path:
    state = {key: value.contiguous() for key, value in transformer.state_dict().items()}
    if request.param == "safetensors":
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        save_file(state, path)
        return path
    path = tmp_path / "model.pt"
    if request.param == "pt":
        torch.save(state, path)
    else:
        wrapped = {f"model._fsdp_wrapped_module.{key}": value for key, value in state.items()}
        torch.save({"generator_ema": wrapped}, path)
    return path


def test_first_chunk_equals_diffusers(transformer: Any, weights: Path) -> None:
    noise, text = torch.randn(3, 4, 6, 8), torch.randn(5, 10)
    engine = VideoEngine(
        EngineConfig(
            model=str(weights),
            num_heads=2,
            latent_shape=(4, 6, 8),
            text_len=TEXT_LEN,
            kv_format="dense",
            kv_memory=2**22,
            device="cpu",
        )
    )
    engine.add_request(
        VideoRequest(request_id="a", prompt_embeds=text, noise=noise, output="latents", trace=True)
    )
    passes: list[Any] = []
    while engine.has_unfinished_requests():
        passes += [out.trace.passes for out in engine.step() if out.trace is not None]
    first = passes[0][0]
    expected = transformer(
        hidden_states=noise.transpose(0, 1)[None],
        timestep=torch.tensor([first.timestep]),
        encoder_hidden_states=torch.cat([text, torch.zeros(TEXT_LEN - 5, 10)])[None],
        return_dict=False,
    )[0]
    difference = first.flow - expected[0].transpose(0, 1)
    assert float(expected.abs().max()) > 0.1
    assert float(difference.abs().max()) <= 1e-4


def test_wrong_heads_are_seen(transformer: Any, weights: Path) -> None:
    assert load_wan(weights, num_heads=2).config.num_heads == 2
    assert load_wan(weights).config.num_heads == 1
