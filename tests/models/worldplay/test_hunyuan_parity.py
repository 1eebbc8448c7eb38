"""The 8B equals the original, from the pose string and the encoders' states to the latents."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qvg_engine import EngineConfig, VideoRequest
from qvg_engine.loading import load_family
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from qvg_engine.models.worldplay.hunyuan_config import HunyuanConfig
from qvg_engine.models.worldplay.hunyuan_family import WorldPlayHunyuanFamily
from qvg_engine.models.worldplay.hunyuan_network import HunyuanNetwork
from tests.models.worldplay.conftest import (
    CACHE_BAR,
    FLOW_BAR,
    TEXT_BAR,
    WorldPlayCase,
    check_passes,
    largest_difference,
    run_recorded,
)

PUBLISHED_PARAMETERS, PUBLISHED_TENSORS = 8_557_933_856, 1_905


def load(case: WorldPlayCase, **settings: Any) -> ModelFamily:
    given = {"latent_shape": (32, 4, 6), "device": "cpu", **settings}
    return load_family(EngineConfig(model=str(case.folder.with_name("8b")), **given))


@pytest.fixture
def family(worldplay_case: WorldPlayCase) -> ModelFamily:
    return load(worldplay_case)


def valid(case: WorldPlayCase, name: str) -> Tensor:
    """An encoder's states without padding."""
    return case.tensors[f"pos.{name}"][0][case.tensors[f"pos.{name}_mask"][0].bool()]


def request_of(case: WorldPlayCase, **conditions: Any) -> VideoRequest:
    given = {
        "pose": case.info["pose"],
        "image_latents": case.frames("cond")[:1, :32],
        "glyph_embeds": valid(case, "byt5"),
        "image_embeds": case.tensors["pos.vision"][0],
        **conditions,
    }
    return VideoRequest(
        request_id="original",
        prompt_embeds=valid(case, "text"),
        noise=case.frames("noise"),
        conditions=WorldPlayConditions(**given),
        output="latents",
        trace=True,
    )


@pytest.mark.parametrize("worldplay_case", ["8b-distilled"], indirect=True)
def test_every_pass_and_the_caches(
    family: ModelFamily,
    worldplay_case: WorldPlayCase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = worldplay_case
    assert isinstance(family, WorldPlayHunyuanFamily)
    tokens: list[Tensor] = []
    text_keys_values = family.network.text_keys_values

    def record(rows: Tensor) -> Any:
        tokens.append(rows)
        return text_keys_values(rows)

    monkeypatch.setattr(family.network, "text_keys_values", record)
    recorded = run_recorded(family, request_of(case), monkeypatch)
    assert largest_difference(tokens[0], case.tensors["pos.txt_tokens"][0]) <= TEXT_BAR
    check_passes(recorded, case)
    for layer, cache in enumerate(recorded.trace.caches[0]):
        for ours, name in ((cache.text_keys, "k"), (cache.text_values, "v")):
            theirs = case.tensors[f"kv_txt.{name}.l{layer}"][0].transpose(0, 1)
            assert largest_difference(ours, theirs) <= TEXT_BAR
        for transform, (keys, values) in enumerate(cache.transformed):
            for ours, name in ((keys, "k"), (values, "v")):
                theirs = case.tensors[f"kv_vision.{name}.l{layer}"][transform].transpose(0, 1)
                assert largest_difference(ours, theirs) <= CACHE_BAR


@pytest.mark.parametrize("worldplay_case", ["8b-distilled"], indirect=True)
@pytest.mark.parametrize(
    "changed",
    [{"actions": (0,) * 12}, {"pose": "s-11"}, {"glyph_embeds": None}, {"image_latents": None}],
)
def test_every_condition_counts(
    family: ModelFamily,
    worldplay_case: WorldPlayCase,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
) -> None:
    recorded = run_recorded(family, request_of(worldplay_case, **changed), monkeypatch)
    assert largest_difference(recorded.latents, worldplay_case.frames("latents")) > 20 * FLOW_BAR


def test_the_published_size() -> None:
    with torch.device("meta"):
        network = HunyuanNetwork(HunyuanConfig())
    assert sum(x.numel() for x in network.parameters()) == PUBLISHED_PARAMETERS
    assert len(network.state_dict()) == PUBLISHED_TENSORS


@pytest.mark.parametrize("worldplay_case", ["8b-distilled"], indirect=True)
def test_memory_at_another_time_is_seen(
    worldplay_case: WorldPlayCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load(worldplay_case, commit_timestep=0.0)
    recorded = run_recorded(family, request_of(worldplay_case), monkeypatch)
    assert largest_difference(recorded.latents, worldplay_case.frames("latents")) > 0.1


@pytest.mark.parametrize("worldplay_case", ["8b-distilled"], indirect=True)
def test_pages_in_bf16_are_as_far_off_as_the_originals(
    family: ModelFamily, worldplay_case: WorldPlayCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(worldplay_case)
    recorded = run_recorded(family, request, monkeypatch, kv_format="bf16")
    difference = largest_difference(recorded.latents, worldplay_case.frames("latents"))
    assert FLOW_BAR < difference < 1e-2


@pytest.mark.parametrize("worldplay_case", ["8b-distilled"], indirect=True)
@pytest.mark.parametrize(("backend", "bar"), [("reference", FLOW_BAR), ("eight-bit", 0.1)])
def test_every_way_to_attend(
    family: ModelFamily,
    worldplay_case: WorldPlayCase,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    bar: float,
) -> None:
    request = request_of(worldplay_case)
    recorded = run_recorded(family, request, monkeypatch, attention_backend=backend)
    assert largest_difference(recorded.latents, worldplay_case.frames("latents")) <= bar
