"""Windows, sinks, prompt switches and positions of Self-Forcing and LongLive, in every format."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qvg_engine.block_manager.format import FORMATS
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.models.wan.reference import ReferenceResult, ReferenceSettings, rollout
from qvg_engine.models.wan.sampler import FewStepSampler

BAR = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "self-forcing, window": {"window_frames": 9},
    "self-forcing, sink": {"window_frames": 9, "sink_frames": 3},
    "longlive": {"window_frames": 12, "sink_frames": 3},
    "infinite": {"window_frames": 12, "sink_frames": 3, "positions": "window"},
    "interactive": {"window_frames": 12, "sink_frames": 3, "frames_per_chunk": 6},
}


def inputs(chunks: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Text, noise and renoise of a toy video."""
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(3, 8, generator=generator),
        torch.randn(frames * chunks, 4, 4, 6, generator=generator),
        torch.randn(chunks, 3, frames, 4, 4, 6, generator=generator),
    )


def plain_loop(toy: Any, settings: dict[str, Any], *, chunks: int, **more: Any) -> ReferenceResult:
    text, noise, renoise = inputs(chunks, settings.get("frames_per_chunk", 3))
    return rollout(
        toy.network,
        prompt_embeds=text,
        noise=noise,
        renoise=renoise,
        settings=ReferenceSettings(
            sampler=FewStepSampler([1000, 750, 500, 250], shift=5.0, warp_timesteps=True),
            text_len=6,
            **{"frames_per_chunk": 3, **settings},
        ),
        **more,
    )


def request(toy: Any, settings: dict[str, Any], *, chunks: int, **fields: Any) -> Any:
    text, noise, renoise = inputs(chunks, settings.get("frames_per_chunk", 3))
    return toy.request("a", prompt_embeds=text, noise=noise, renoise=renoise, **fields)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_equals_a_plain_loop(toy: Any, run: Any, name: str) -> None:
    settings = SETTINGS[name]
    collected = run(toy.engine(settings=settings), request(toy, settings, chunks=6))
    expected = plain_loop(toy, settings, chunks=6).latents
    assert float((collected.latents("a") - expected).abs().max()) <= BAR
    if name == "infinite":
        absolute = plain_loop(toy, SETTINGS["longlive"], chunks=6).latents
        assert float((expected - absolute).abs().max()) > 100 * BAR


def test_a_trace_rotates_to_the_window(toy: Any, run: Any) -> None:
    settings = SETTINGS["infinite"]
    trace = (
        run(toy.engine(settings=settings), request(toy, settings, chunks=6, trace=True))
        .last("a")
        .trace
    )
    numbers, cache = trace.token_numbers[0], trace.caches[0][0]
    seen_as = torch.arange(len(numbers)).div(6, rounding_mode="floor")
    assert int(numbers[-1]) == 18 * 6 - 1
    assert len(numbers) == 9 * 6
    # Frame 0 is not rotated in time, and so the same wherever positions start.
    moved = (cache.keys - cache.rotated_keys).abs().amax((1, 2)) > 1e-6
    assert not bool(moved[(seen_as == 0).nonzero()[0]])
    assert bool(moved[-6])


@pytest.mark.parametrize(
    ("name", "switch_chunk"),
    [
        ("longlive", 1),
        ("longlive", 2),
        ("longlive", 5),
        ("self-forcing, window", 4),
        ("infinite", 5),
        ("interactive", 2),
        ("full history", 2),
    ],
)
def test_a_switch_equals_one_commit_under_the_new_text(
    toy: Any, run: Any, name: str, switch_chunk: int
) -> None:
    settings = SETTINGS.get(name, {})
    new = -torch.ones(2, 8)
    engine = toy.engine(settings=settings)
    engine.add_request(request(toy, settings, chunks=switch_chunk + 2))
    latents: list[Tensor] = []
    while len(latents) < switch_chunk:
        latents += [output.latents for output in engine.step()]
    engine.update_request("a", prompt_embeds=new)
    switched = torch.cat([*latents, run(engine).latents("a")])
    expected = plain_loop(
        toy, settings, chunks=switch_chunk + 2, switch=(switch_chunk, new)
    ).latents
    assert float((switched - expected).abs().max()) <= BAR
    first = switch_chunk * settings.get("frames_per_chunk", 3)
    without = plain_loop(toy, settings, chunks=switch_chunk + 2).latents
    assert float((switched - without)[first:].abs().max()) > 100 * BAR


@pytest.fixture(scope="module")
def wide() -> WanNetwork:
    """A toy network with heads that every format can store."""
    torch.manual_seed(3)
    config = WanConfig(
        dim=64, ffn_dim=64, num_heads=2, num_layers=1, in_dim=4, out_dim=4, text_dim=8, freq_dim=16
    )
    return WanNetwork(config).requires_grad_(False)


@pytest.mark.parametrize("name", ["longlive", "infinite"])
def test_every_format_runs_with_a_switch(toy: Any, wide: WanNetwork, run: Any, name: str) -> None:
    """A coarse format moves the video of random weights; it must stay near."""
    settings, new = SETTINGS[name], torch.ones(2, 8)
    toy = type(toy)(wide)
    expected = plain_loop(toy, settings, chunks=5, switch=(3, new)).latents
    for kv_format in FORMATS:
        engine = toy.engine(settings=settings, kv_format=kv_format, kv_memory=2**23)
        engine.add_request(request(toy, settings, chunks=5))
        latents: list[Tensor] = []
        while len(latents) < 3:
            latents += [output.latents for output in engine.step() if output.latents is not None]
        engine.update_request("a", prompt_embeds=new)
        made = torch.cat([*latents, run(engine).latents("a")])
        error = float((made - expected).pow(2).mean() / expected.pow(2).mean())
        assert error <= {"dense": 1e-9, "bf16": 1e-4}.get(kv_format, 0.1), (kv_format, error)


@pytest.mark.parametrize("name", ["longlive", "infinite"])
def test_streams_start_switch_and_end_beside_one_another(toy: Any, run: Any, name: str) -> None:
    settings, new = SETTINGS[name], -torch.ones(2, 8)
    engine = toy.engine(settings=settings)
    text, noise, renoise = inputs(6, 3)
    for request_id in ("switched", "aborted"):
        engine.add_request(
            toy.request(request_id, prompt_embeds=text, noise=noise, renoise=renoise)
        )
    latents: list[Tensor] = []
    finished = {}
    while len(latents) < 4:
        for output in engine.step():
            if output.request_id == "switched":
                assert output.latents is not None
                latents.append(output.latents)
        if len(latents) == 2 and "late" not in finished:
            engine.add_request(
                toy.request("late", prompt_embeds=text, noise=noise, renoise=renoise)
            )
            finished["late"] = engine.abort_request("aborted")
        engine.check_integrity()
    engine.update_request("switched", prompt_embeds=new)
    rest = run(engine)
    plain = plain_loop(toy, settings, chunks=6).latents
    switched = plain_loop(toy, settings, chunks=6, switch=(4, new)).latents
    made = torch.cat([*latents, rest.latents("switched")])
    assert float((made - switched).abs().max()) <= BAR
    assert float((made - plain)[12:].abs().max()) > 100 * BAR
    late = rest.latents("late")
    assert float((late - plain[-len(late) :]).abs().max()) <= BAR
    assert "aborted" not in rest.outputs
    assert engine.stats().pages_used == 0
