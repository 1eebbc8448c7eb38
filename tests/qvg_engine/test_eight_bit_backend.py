"""The engine with `attention_backend="eight-bit"`: what it takes, and what it makes."""

from typing import Any

import msgspec
import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.paged_attention import EightBitWorkspace
from qvg_engine.models.pocket.family import load_pocket
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.plan import plan_capacity
from tests.qvg_engine.test_coded_pages import latents, make_engine


@pytest.mark.parametrize("kv_format", ["bf16", "q2"])
def test_videos_follow_those_of_the_workspace(kv_format: str) -> None:
    exact = latents(make_engine(kv_format), "a", chunks=3)
    made = latents(make_engine(kv_format, attention_backend="eight-bit"), "a", chunks=3)
    torch.testing.assert_close(made[:3], exact[:3], rtol=0, atol=1e-4, msg="reads no page")
    error = float((made[3:6] - exact[3:6]).square().mean() / exact[3:6].var())
    assert 0 < error < 2e-3, error


def test_history_longer_than_the_workspace() -> None:
    made = [
        latents(
            make_engine("q2", attention_backend="eight-bit", workspace_tokens=tokens), "a", chunks=3
        )[6:9]
        for tokens in (None, 250)
    ]
    assert float((made[0] - made[1]).square().mean() / made[0].var()) < 1e-2


def test_its_workspace_stands_instead_of_the_dense_one_and_is_counted() -> None:
    engine = make_engine("q2", attention_backend="eight-bit", workspace_tokens=1000)
    workspace = engine._cache.workspace
    assert isinstance(workspace, EightBitWorkspace)
    heads, tokens, head_dim = workspace.keys.shape
    assert tokens == 1008
    expected = tokens * (heads * (2 * head_dim + 4) + 4) + 4 * heads * head_dim
    assert engine.stats().workspace_bytes == workspace.num_bytes == expected
    dense = make_engine("q2", workspace_tokens=1000).stats().workspace_bytes
    assert engine.stats().workspace_bytes < 0.28 * dense, "of fp32"


@pytest.mark.parametrize("backend", ["workspace", "eight-bit"])
def test_a_plan_counts_what_the_engine_allocates(backend: Any) -> None:
    config = EngineConfig(attention_backend=backend, kv_memory=2**24, device="cpu")
    plan = plan_capacity(config, load_pocket(), num_frames=60)
    assert plan.workspace_bytes == VideoEngine(config).stats().workspace_bytes


def test_heads_of_other_sizes_are_refused() -> None:
    pocket = load_pocket()
    sizes = msgspec.structs.replace(
        pocket.network.config, dim=96, ffn_dim=64, num_heads=2, num_layers=1
    )
    family = WanFamily(WanNetwork(sizes), pocket.settings, codec=pocket.codec)
    config = EngineConfig(
        attention_backend="eight-bit", kv_format="bf16", kv_memory=2**24, device="cpu"
    )
    with pytest.raises(ConfigError, match="'eight-bit', which takes heads of 32, 64, 128 channels"):
        VideoEngine(config, family=family)
    with pytest.raises(ConfigError, match="32, 64 or 128, got 48"):
        plan_capacity(config, family, num_frames=60)
