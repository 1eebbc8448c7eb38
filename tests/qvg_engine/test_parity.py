"""The engine against what the original Self-Forcing implementation computed."""

from typing import Any

import pytest
import torch

from qvg_engine.models.wan import family as wan_family
from qvg_engine.models.wan.program import WanProgram
from qvg_engine.models.wan.reference import ReferenceSettings, rollout
from qvg_engine.models.wan.sampler import FewStepSampler

# What is wrong on purpose moves the latents by 0.3 and more; rounding by 1e-5.
BAR = 1e-4


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def test_engine_equals_the_original(case: Any, run: Any) -> None:
    collected = run(case.engine(), case.request())
    latents = collected.latents(case.name)
    assert largest_difference(latents, case.tensors["latents"][0]) <= BAR
    trace = collected.last(case.name).trace
    steps = len(case.config["denoising_step_list"])
    assert len(trace.passes) == case.config["chunks"] * (steps + 1)
    for record in trace.passes:
        step = steps if record.step is None else record.step
        for name, value in (("x0", record.x0), ("flow", record.flow)):
            expected = case.tensors[f"{name}.c{record.chunk_index}.s{step}"].view_as(value)
            assert largest_difference(value, expected) <= BAR, (name, record.chunk_index, step)


def test_caches_equal_the_original(shipped_case: Any, run: Any) -> None:
    trace = run(shipped_case.engine(), shipped_case.request()).last("full").trace
    assert trace.token_numbers[0].tolist() == list(range(216))
    for layer, cache in enumerate(trace.caches[0]):
        for name, value in (
            (f"kv.k.l{layer}", cache.rotated_keys),
            (f"kv.v.l{layer}", cache.values),
            (f"xkv.k.l{layer}", cache.text_keys),
            (f"xkv.v.l{layer}", cache.text_values),
        ):
            assert largest_difference(value, shipped_case.tensors[name][0]) <= BAR, name


@pytest.mark.parametrize("page_size", [1, 48, 64, 128])
@pytest.mark.parametrize("backend", ["workspace", "reference"])
def test_page_size_and_backend_change_nothing(
    shipped_case: Any, run: Any, page_size: int, backend: str
) -> None:
    engine = shipped_case.engine(page_size=page_size, attention_backend=backend)
    latents = run(engine, shipped_case.request()).latents("full")
    assert largest_difference(latents, shipped_case.tensors["latents"][0]) <= BAR


def test_history_longer_than_the_workspace(shipped_case: Any, run: Any) -> None:
    engine = shipped_case.engine(workspace_tokens=50)
    latents = run(engine, shipped_case.request()).latents("full")
    assert largest_difference(latents, shipped_case.tensors["latents"][0]) <= BAR


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"warp_timesteps": False}, id="unwarped timesteps"),
        pytest.param({"text_len": 11}, id="text padding masked"),
        pytest.param({"commit_timestep": 625.0}, id="commit at the noisy step"),
    ],
)
def test_mutant_settings_are_seen(shipped_case: Any, run: Any, overrides: dict[str, Any]) -> None:
    latents = run(shipped_case.engine(**overrides), shipped_case.request()).latents("full")
    assert largest_difference(latents, shipped_case.tensors["latents"][0]) > 0.1


def test_mutant_positions_are_seen(
    shipped_case: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RestartingProgram(WanProgram):
        """Each chunk at position 0."""

        def pass_inputs(self) -> Any:
            inputs = super().pass_inputs()
            return [
                type(item)(
                    latents=item.latents,
                    timesteps=item.timesteps,
                    first_token=0,
                    transform=item.transform,
                    read_upto=item.read_upto,
                )
                for item in inputs
            ]

    monkeypatch.setattr(wan_family, "WanProgram", RestartingProgram)
    latents = run(shipped_case.engine(), shipped_case.request()).latents("full")
    assert largest_difference(latents, shipped_case.tensors["latents"][0]) > 0.1


def plain_loop(case: Any, *, window: int | None, sink: int, **settings: Any) -> torch.Tensor:
    from qvg_engine.models.wan.checkpoint import load_wan

    result = rollout(
        load_wan(case.weights),
        prompt_embeds=case.tensors["prompt_embeds"][0],
        noise=case.tensors["noise"][0],
        renoise=case.renoise,
        settings=ReferenceSettings(
            frames_per_chunk=3,
            sampler=FewStepSampler([1000, 750, 500, 250], shift=5.0, warp_timesteps=True),
            window_frames=window,
            sink_frames=sink,
            text_len=32,
            **settings,
        ),
    )
    return result.latents


def test_plain_loop_equals_the_original(shipped_case: Any) -> None:
    latents = plain_loop(shipped_case, window=None, sink=0)
    assert largest_difference(latents, shipped_case.tensors["latents"][0]) <= BAR


@pytest.mark.parametrize(("window", "sink"), [(6, 3), (6, 0), (7, 1), (8, 2), (3, 0)])
def test_windows_and_sinks_equal_a_plain_loop(
    shipped_case: Any, run: Any, window: int, sink: int
) -> None:
    expected = plain_loop(shipped_case, window=window, sink=sink)
    engine = shipped_case.engine(window_frames=window, sink_frames=sink)
    assert largest_difference(run(engine, shipped_case.request()).latents("full"), expected) <= BAR


def test_a_lost_sink_is_seen(shipped_case: Any, run: Any) -> None:
    expected = plain_loop(shipped_case, window=6, sink=3)
    engine = shipped_case.engine(window_frames=6, sink_frames=0)
    assert largest_difference(run(engine, shipped_case.request()).latents("full"), expected) > 0.1


@pytest.mark.parametrize("window", [None, 6])
def test_bf16_pages_equal_a_loop_that_rounds(
    shipped_case: Any, run: Any, window: int | None
) -> None:
    expected = plain_loop(
        shipped_case, window=window, sink=0, round_cache=lambda x: x.bfloat16().float()
    )
    engine = shipped_case.engine(kv_format="bf16", window_frames=window)
    latents = run(engine, shipped_case.request()).latents("full")
    assert largest_difference(latents, expected) <= BAR
    exact = plain_loop(shipped_case, window=window, sink=0)
    assert largest_difference(latents, exact) > BAR


def test_k_and_v_may_have_different_formats(shipped_case: Any, run: Any) -> None:
    engine = shipped_case.engine(kv_format="dense", value_format="bf16")
    trace = run(engine, shipped_case.request()).last("full").trace
    cache = trace.caches[0][0]
    assert torch.equal(cache.values, cache.values.bfloat16().float())
    assert not torch.equal(cache.keys, cache.keys.bfloat16().float())
