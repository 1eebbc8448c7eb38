"""A tiny LongCat network with random weights, and engines and requests for it."""

from typing import Any

import torch
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.models.longcat.conditions import LongCatConditions
from qvg_engine.models.longcat.config import LongCatConfig
from qvg_engine.models.longcat.family import LongCatFamily
from qvg_engine.models.longcat.network import LongCatNetwork

CONFIG = LongCatConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=48,
    depth=2,
    num_heads=2,
    caption_channels=8,
    mlp_ratio=1,
    adaln_tembed_dim=16,
    frequency_embedding_size=16,
    text_tokens_zero_pad=True,
)
TEXT_LEN = 7


def make_network(config: LongCatConfig = CONFIG, *, seed: int = 0) -> LongCatNetwork:
    generator = torch.Generator().manual_seed(seed)
    network = LongCatNetwork(config)
    for name, parameter in network.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("norm.weight")
        spread = 0.3 if parameter.ndim == 1 else float(parameter[0].numel()) ** -0.5
        with torch.no_grad():
            drawn = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(drawn + 1.0 if is_norm else drawn)
    return network.eval().requires_grad_(False)


def make_family(network: LongCatNetwork | None = None, **settings: Any) -> LongCatFamily:
    given = {"latent_shape": (4, 4, 6), "segment_frames": 3, "text_len": TEXT_LEN, **settings}
    return LongCatFamily(network or make_network(), **given)


def make_engine(family: LongCatFamily | None = None, **config: Any) -> VideoEngine:
    given = {
        "kv_format": "dense",
        "page_size": 4,
        "kv_memory": 2 * 1024**2,
        "device": "cpu",
        "workspace_tokens": 64,
        **config,
    }
    return VideoEngine(EngineConfig(**given), family=family or make_family())


def make_request(
    request_id: str,
    *,
    frames: int = 3,
    context: int = 2,
    size: tuple[int, int] = (4, 6),
    conditions: dict[str, Any] | None = None,
    **fields: Any,
) -> VideoRequest:
    """Three steps under guidance, unless `conditions` say otherwise."""
    generator = torch.Generator().manual_seed(sum(map(ord, request_id)))
    embeds, negative = torch.randn(2, 5, 8, generator=generator)
    given = {"num_steps": 3, "negative_prompt_embeds": negative, "enhance_hf": False}
    return VideoRequest(
        **{
            "request_id": request_id,
            "prompt_embeds": embeds,
            "noise": torch.randn(frames, 4, *size, generator=generator),
            "context_latents": torch.randn(context, 4, *size, generator=generator)
            if context
            else None,
            "conditions": LongCatConditions(**{**given, **(conditions or {})}),
            "output": "latents",
            **fields,
        }
    )


def padded(network: LongCatNetwork, rows: Tensor, num_rows: int) -> Tensor:
    """Rows [L, text_dim] behind the text MLP, then zero rows."""
    context = network.embed_text(rows)
    return torch.cat([context, torch.zeros(num_rows - len(rows), context.shape[1])])


def negative_of(request: VideoRequest) -> Tensor:
    """The negative embeddings of a request from `make_request`."""
    assert isinstance(request.conditions, LongCatConditions)
    assert request.conditions.negative_prompt_embeds is not None
    return request.conditions.negative_prompt_embeds
