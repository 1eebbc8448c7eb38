"""The engine against what the original LongCat-Video implementation computed."""

from typing import Any

import msgspec
import pytest
import torch

from qvg_engine.models.longcat import program as longcat_program
from qvg_engine.models.longcat.program import LongCatProgram

BAR, CACHE_BAR = 2e-4, 5e-5


def frames_first(latents: torch.Tensor) -> torch.Tensor:
    return latents.transpose(0, 1)


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    assert left.shape == right.shape
    return float((left - right).abs().max())


def expected_latents(case: Any) -> torch.Tensor:
    """The new frames: the condition comes first in the original's result."""
    return frames_first(case.tensors["latents"][0])[case.tensors["cond"].shape[2] :]


def test_engine_equals_the_original(case: Any, run: Any) -> None:
    collected = run(case.engine(), case.request())
    assert collected.last("case").error is None
    assert largest_difference(collected.latents("case"), expected_latents(case)) <= BAR
    commit, *steps = collected.last("case").trace.passes
    assert (commit.step, commit.chunk_index, commit.timestep) == (None, -1, 0.0)
    clean = frames_first(case.tensors["clean_out"][0])
    assert largest_difference(commit.flow, clean) <= BAR
    branches = 2 if case.guided else 1
    assert [(item.step, item.branch) for item in steps] == [
        (step, branch) for step in range(case.num_calls) for branch in range(branches)
    ]
    for item in steps:
        step = item.step
        name = f"s{step}"
        assert item.timestep == pytest.approx(float(case.tensors["timesteps"][step]), abs=1e-4)
        expected = frames_first(case.tensors[f"out.{name}"][item.branch])
        assert largest_difference(item.flow, expected) <= BAR, (step, item.branch)
        sigma = case.tensors["sigmas"][step]
        x0 = frames_first(case.tensors[f"x.{name}"][0]) + sigma * expected
        assert largest_difference(item.x0, x0) <= BAR, (step, item.branch)
        if case.guided:
            scale = float(case.tensors[f"st_star.{name}"])
            assert item.cfg_zero_scale == pytest.approx(scale, abs=BAR)
            guided = -frames_first(case.tensors[f"v.{name}"][0])
            assert largest_difference(item.guided_flow, guided) <= BAR, step


def test_cache_equals_the_original(case: Any, run: Any) -> None:
    trace = run(case.engine(), case.request()).last("case").trace
    num_tokens = case.tensors["kv.k.l0"].shape[2]
    for branch, numbers in enumerate(trace.token_numbers):
        assert numbers.tolist() == list(range(num_tokens))
        for layer, cache in enumerate(trace.caches[branch]):
            for name, value in (("k", cache.keys), ("v", cache.values)):
                expected = case.tensors[f"kv.{name}.l{layer}"][0].transpose(0, 1)
                assert largest_difference(value, expected) <= CACHE_BAR, (name, branch, layer)


def test_text_padding_left_out_is_seen(case: Any, run: Any) -> None:
    kept = case.tensors["prompt_mask"][0] != 0
    if bool(kept.all()):
        pytest.skip("the case has no padding")
    embeds = case.tensors["prompt_embeds"][0, 0][kept]
    request = case.request(prompt_embeds=embeds, conditions=case.conditions(prompt_mask=None))
    latents = run(case.engine(text_len=len(kept)), request).latents("case")
    assert largest_difference(latents, expected_latents(case)) <= BAR
    request = case.request(
        prompt_embeds=embeds, conditions=case.conditions(prompt_mask=torch.ones(len(embeds)))
    )
    latents = run(case.engine(), request).latents("case")
    if case.info["text_tokens_zero_pad"]:
        assert largest_difference(latents, expected_latents(case)) > 0.1


def test_queries_at_position_0_are_seen(
    case: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_inputs = LongCatProgram.pass_inputs
    monkeypatch.setattr(
        LongCatProgram,
        "pass_inputs",
        lambda self: [msgspec.structs.replace(item, first_token=0) for item in pass_inputs(self)],
    )
    latents = run(case.engine(), case.request()).latents("case")
    assert largest_difference(latents, expected_latents(case)) > 0.1


def test_plain_guidance_is_seen(case: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not case.guided:
        pytest.skip("the case has no guidance")
    monkeypatch.setattr(longcat_program, "cfg_zero_scale", lambda *flows: torch.ones(()))
    latents = run(case.engine(), case.request()).latents("case")
    assert largest_difference(latents, expected_latents(case)) > 0.1


def test_rounded_cache_is_seen(case: Any, run: Any) -> None:
    latents = run(case.engine(kv_format="bf16"), case.request()).latents("case")
    assert BAR < largest_difference(latents, expected_latents(case)) < 0.05
