"""Toy families of both kinds, and requests for them."""

from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from qvg_engine.models.worldplay.hunyuan_config import HunyuanConfig
from qvg_engine.models.worldplay.hunyuan_family import WorldPlayHunyuanFamily
from qvg_engine.models.worldplay.hunyuan_network import HunyuanNetwork
from qvg_engine.models.worldplay.settings import WorldPlaySettings
from qvg_engine.models.worldplay.wan_family import WorldPlayWanFamily
from qvg_engine.models.worldplay.wan_network import CameraWanNetwork

KINDS = ("5b", "8b")
STEPS = (1000.0, 600.0)
SHAPE = (4, 2, 4)
TEXT_DIM, GLYPH_DIM, IMAGE_DIM = 8, 6, 10

WAN_CONFIG = WanConfig(
    dim=64, ffn_dim=48, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_dim=8, freq_dim=16
)
HUNYUAN_CONFIG = HunyuanConfig(
    dim=64,
    num_heads=2,
    num_layers=2,
    mlp_dim=48,
    latent_channels=4,
    text_dim=TEXT_DIM,
    refiner_mlp_dim=32,
    glyph_dim=GLYPH_DIM,
    glyph_hidden=12,
    image_dim=IMAGE_DIM,
    freq_dim=16,
    rope_dims=(8, 12, 12),
)


def drawn(network: nn.Module, seed: int = 0) -> Any:
    """The network with random weights, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        values = torch.randn(parameter.shape, generator=generator) * spread
        with torch.no_grad():
            parameter.copy_(values + (1.0 if "norm" in name and "weight" in name else 0.0))
    return network.eval().requires_grad_(False)


def make_family(kind: str, *, head_dim: int = 32, **settings: Any) -> Any:
    """Two steps a chunk, a memory of 16: 4 of them first, 8 last, one group chosen."""
    dim, rope = 2 * head_dim, (head_dim // 4, 3 * head_dim // 8, 3 * head_dim // 8)
    given = {
        "latent_shape": SHAPE,
        "window_frames": 20,
        "sink_frames": 4,
        "recent_frames": 8,
        "timesteps": STEPS,
        "warp_timesteps": False,
        "text_len": 5,
        "keeps_image": kind == "5b",
        **settings,
    }
    if kind == "5b":
        wan = msgspec.structs.replace(WAN_CONFIG, dim=dim)
        return WorldPlayWanFamily(drawn(CameraWanNetwork(wan)), WorldPlaySettings(**given))
    config = msgspec.structs.replace(HUNYUAN_CONFIG, dim=dim, rope_dims=rope)
    return WorldPlayHunyuanFamily(drawn(HunyuanNetwork(config)), WorldPlaySettings(**given))


def make_engine(family: Any, **config: Any) -> VideoEngine:
    given = {
        "kv_format": "dense",
        "page_size": 8,
        "kv_memory": 8 * 2**20,
        "workspace_tokens": 50,
        "device": "cpu",
        **config,
    }
    return VideoEngine(EngineConfig(**given), family=family)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_request(
    kind: str, request_id: str = "a", *, chunks: int = 3, pose: str | None = None, **fields: Any
) -> VideoRequest:
    """A request with an image and, for the 8B, glyphs and image states.

    Fields of `WorldPlayConditions` go there, all others to the request.
    """
    seed = sum(map(ord, request_id))
    names = set(WorldPlayConditions.__struct_fields__)
    conditions: dict[str, Any] = {"image_latents": random(seed, 1, *SHAPE)}
    if pose is not None:
        conditions["pose"] = pose
    if kind == "8b":
        conditions["glyph_embeds"] = random(seed + 1, 2, GLYPH_DIM)
        conditions["image_embeds"] = random(seed + 2, 3, IMAGE_DIM)
    conditions |= {name: fields.pop(name) for name in tuple(fields) if name in names}
    given = {
        "prompt_embeds": random(seed + 3, 3, TEXT_DIM),
        "noise": random(seed + 4, 4 * chunks, *SHAPE),
        "output": "latents",
        **fields,
    }
    return VideoRequest(
        request_id=request_id, conditions=WorldPlayConditions(**conditions), **given
    )


def pose_of(chunks: int) -> str:
    """Turn to the right and back again, a camera per latent frame."""
    frames = 4 * chunks - 1
    away = frames * 3 // 5
    return f"right-{away},left-{frames - away}"
