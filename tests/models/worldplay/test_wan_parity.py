"""The 5B equals the original, from the pose string to the latents."""

from typing import Any

import pytest
import torch

from qvg_engine import EngineConfig, VideoRequest
from qvg_engine.loading import load_family
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from tests.models.worldplay.conftest import (
    CACHE_BAR,
    FLOW_BAR,
    WorldPlayCase,
    check_passes,
    largest_difference,
    run_recorded,
)


def load(case: WorldPlayCase, **settings: Any) -> ModelFamily:
    given = {
        "latent_shape": (48, 4, 6),
        "text_len": case.tensors["text"].shape[1],
        "device": "cpu",
        **settings,
    }
    return load_family(EngineConfig(model=str(case.folder), **given))


@pytest.fixture
def family(worldplay_case: WorldPlayCase) -> ModelFamily:
    return load(worldplay_case)


def request_of(case: WorldPlayCase, **conditions: Any) -> VideoRequest:
    given = {
        "pose": case.info["pose"],
        "image_latents": case.frames("image"),
        **conditions,
    }
    return VideoRequest(
        request_id="original",
        prompt_embeds=case.tensors["text"][0],
        noise=case.frames("noise"),
        conditions=WorldPlayConditions(**given),
        output="latents",
        trace=True,
    )


@pytest.mark.parametrize("worldplay_case", ["5b"], indirect=True)
def test_every_pass_and_the_cache(
    family: ModelFamily, worldplay_case: WorldPlayCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = worldplay_case
    recorded = run_recorded(family, request_of(case), monkeypatch)
    check_passes(recorded, case)
    for layer, cache in enumerate(recorded.trace.caches[0]):
        keys = torch.cat([keys for keys, _ in cache.transformed], dim=-1)
        values = torch.cat([values for _, values in cache.transformed], dim=-1)
        for ours, name in ((keys, "k"), (values, "v")):
            theirs = case.tensors[f"kv.{name}.l{layer}"][0].transpose(0, 1)
            assert largest_difference(ours, theirs) <= CACHE_BAR


@pytest.mark.parametrize("worldplay_case", ["5b"], indirect=True)
@pytest.mark.parametrize("changed", [{"actions": (0,) * 12}, {"pose": "s-11"}])
def test_actions_and_cameras_count(
    family: ModelFamily,
    worldplay_case: WorldPlayCase,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
) -> None:
    recorded = run_recorded(family, request_of(worldplay_case, **changed), monkeypatch)
    assert largest_difference(recorded.latents, worldplay_case.frames("latents")) > 100 * FLOW_BAR


@pytest.mark.parametrize("worldplay_case", ["5b"], indirect=True)
def test_memory_at_another_time_is_seen(
    worldplay_case: WorldPlayCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load(worldplay_case, commit_timestep=0.0)
    recorded = run_recorded(family, request_of(worldplay_case), monkeypatch)
    assert largest_difference(recorded.latents, worldplay_case.frames("latents")) > 0.1


@pytest.mark.parametrize("worldplay_case", ["5b"], indirect=True)
def test_pages_in_bf16_are_as_far_off_as_the_originals(
    family: ModelFamily, worldplay_case: WorldPlayCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(worldplay_case)
    recorded = run_recorded(family, request, monkeypatch, kv_format="bf16")
    difference = largest_difference(recorded.latents, worldplay_case.frames("latents"))
    assert FLOW_BAR < difference < 1e-2
