"""Whole videos against a plain loop, and many of them together."""

from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from qvg_engine import VideoRequest
from qvg_engine.block_manager.format import FORMATS
from qvg_engine.errors import ConfigError
from qvg_engine.models.longcat.conditions import LongCatConditions
from qvg_engine.models.longcat.reference import ReferenceSettings, rollout
from qvg_engine.quality.recorder import record_video
from tests.models.longcat.toy import (
    CONFIG,
    TEXT_LEN,
    make_engine,
    make_family,
    make_network,
    make_request,
    negative_of,
    padded,
)

BAR = 1e-4


def largest_difference(left: Tensor, right: Tensor) -> float:
    assert left.shape == right.shape
    return float((left - right).abs().max())


def sigmas_of(schedule: str, num_steps: int, *, tail: bool) -> list[float]:
    """Levels with shift 12, from their definition."""
    if schedule == "distilled":
        levels = [1 - 0.02 * (i * 50 // num_steps) for i in range(num_steps)]
    else:
        levels = [1 - 0.999 * i / max(num_steps - 1, 1) for i in range(num_steps)]
    warped = [12 * u / (1 + 11 * u) for u in levels]
    if tail:
        warped = [u for u in warped if u > 0.5] + [0.5 - 0.05 * i for i in range(10)]
    return [*warped, 0.0]


CASES = [
    pytest.param({}, 2, 3, [(2, 3)], id="guided"),
    pytest.param({"guidance": 1, "num_steps": 2}, 2, 3, [(2, 3)], id="unguided"),
    pytest.param({"enhance_hf": True, "num_steps": 4}, 2, 3, [(2, 3)], id="even last steps"),
    pytest.param({"enhance_hf": None, "num_steps": 2}, 0, 6, [(0, 5), (2, 1)], id="by default"),
    pytest.param({"schedule": "distilled", "num_steps": 5}, 2, 3, [(2, 3)], id="distilled"),
    pytest.param(
        {"schedule": "distilled", "num_steps": 3, "guidance": 2.5}, 1, 2, [(1, 2)], id="both"
    ),
    pytest.param({"condition_frames": 2}, 0, 4, [(0, 4)], id="text alone"),
    pytest.param({"condition_frames": 2}, 0, 10, [(0, 5), (2, 3), (2, 2)], id="three segments"),
    pytest.param({}, 2, 7, [(2, 3), (2, 3), (2, 1)], id="as many as the context"),
    pytest.param(
        {"condition_frames": 4, "segment_frames": 2},
        1,
        5,
        [(1, 2), (3, 2), (4, 1)],
        id="short clip",
    ),
]


@pytest.mark.parametrize("zero_pad", [True, False], ids=["padding attended", "padding left out"])
@pytest.mark.parametrize(("conditions", "context", "frames", "segments"), CASES)
def test_videos_equal_a_plain_loop(
    run: Any,
    conditions: dict[str, Any],
    context: int,
    frames: int,
    segments: list[tuple[int, int]],
    zero_pad: bool,
) -> None:
    network = make_network(msgspec.structs.replace(CONFIG, text_tokens_zero_pad=zero_pad))
    if context == 0 and "condition_frames" not in conditions:
        conditions = {**conditions, "condition_frames": 2}
    request = make_request("a", frames=frames, context=context, conditions=conditions)
    given = request.conditions
    assert isinstance(given, LongCatConditions)
    schedule = given.schedule or "standard"
    assert given.num_steps is not None
    tails = [
        given.enhance_hf if given.enhance_hf is not None else condition > 0
        for condition, _ in segments
    ]
    guidance = given.guidance or (1.0 if schedule == "distilled" else 4.0)
    assert request.noise is not None
    assert request.prompt_embeds is not None
    rows = TEXT_LEN if zero_pad else len(request.prompt_embeds)
    expected = rollout(
        network,
        noise=request.noise,
        context=request.context_latents,
        prompts=[padded(network, request.prompt_embeds, rows)] * len(segments),
        negative=padded(network, negative_of(request), rows) if guidance > 1 else None,
        settings=ReferenceSettings(
            segments=segments,
            sigmas=[sigmas_of(schedule, given.num_steps, tail=tail) for tail in tails],
            guidance=guidance,
        ),
    )
    engine = make_engine(make_family(network))
    collected = run(engine, request)
    chunks = [item.latents for item in collected.outputs["a"] if item.latents is not None]
    assert [len(chunk) for chunk in chunks] == [new for _, new in segments]
    assert largest_difference(torch.cat(chunks), torch.cat(expected)) <= BAR
    assert collected.last("a").finish_reason == "length"
    assert engine.stats().pages_used == 0


def rolled_out(request: VideoRequest, **settings: Any) -> Tensor:
    """A request of three guided steps and one segment, as a plain loop."""
    network = make_network()
    assert request.noise is not None
    assert request.prompt_embeds is not None
    context = request.context_latents
    frames = 0 if context is None else len(context)
    videos = rollout(
        network,
        noise=request.noise,
        context=context,
        prompts=[padded(network, request.prompt_embeds, TEXT_LEN)],
        negative=padded(network, negative_of(request), TEXT_LEN),
        settings=ReferenceSettings(
            segments=[(frames, len(request.noise))],
            sigmas=[sigmas_of("standard", 3, tail=False)],
            guidance=4.0,
            **settings,
        ),
    )
    return torch.cat(videos)


@pytest.mark.parametrize("zero_pad", [True, False])
def test_masked_rows_are_padding(run: Any, zero_pad: bool) -> None:
    """Embeddings with padding in them and a mask: as the rows alone, padded to the same length."""
    network = make_network(msgspec.structs.replace(CONFIG, text_tokens_zero_pad=zero_pad))
    plain = make_request("a")
    assert plain.prompt_embeds is not None
    junk = torch.cat([plain.prompt_embeds, torch.full((2, 8), 9.0)])
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 0])
    masked = make_request("a", prompt_embeds=junk, conditions={"prompt_mask": mask})
    expected = run(make_engine(make_family(network)), plain).latents("a")
    longer = make_engine(make_family(network, text_len=100))
    conditions = {
        "prompt_mask": mask,
        "negative_mask": torch.ones(7),
        "negative_prompt_embeds": torch.cat([negative_of(plain), junk[:2]]),
    }
    assert (
        largest_difference(run(make_engine(make_family(network)), masked).latents("a"), expected)
        <= BAR
    )
    # With masks the engine's text_len does not matter.
    both = [
        run(engine, make_request("a", prompt_embeds=junk, conditions=conditions)).latents("a")
        for engine in (longer, make_engine(make_family(network)))
    ]
    assert largest_difference(*both) <= BAR
    # The whole text, junk included, is another one.
    unmasked = make_request("a", prompt_embeds=junk)
    engine = make_engine(make_family(network))
    assert largest_difference(run(engine, unmasked).latents("a"), expected) > 0.01


def test_collapsed_padding_is_the_same(run: Any) -> None:
    """Many rows of padding are kept as one with a weight."""
    network = make_network()
    request = make_request("a")
    assert request.prompt_embeds is not None
    assert request.noise is not None
    engine = make_engine(make_family(network, text_len=200))
    latents = run(engine, request).latents("a")
    expected = rollout(
        network,
        noise=request.noise,
        context=request.context_latents,
        prompts=[padded(network, request.prompt_embeds, 200)],
        negative=padded(network, negative_of(request), 200),
        settings=ReferenceSettings(
            segments=[(2, 3)], sigmas=[sigmas_of("standard", 3, tail=False)], guidance=4.0
        ),
    )
    assert largest_difference(latents, torch.cat(expected)) <= BAR


def test_bf16_pages_equal_a_loop_that_rounds(run: Any) -> None:
    request = make_request("a")
    latents = run(make_engine(kv_format="bf16"), request).latents("a")
    expected = rolled_out(request, round_cache=lambda x: x.bfloat16().float())
    assert largest_difference(latents, expected) <= BAR
    assert largest_difference(latents, rolled_out(request)) > 3 * BAR


@pytest.mark.parametrize("kv_format", [name for name in FORMATS if name not in ("dense", "bf16")])
def test_every_format_follows_the_exact_video(run: Any, kv_format: str) -> None:
    requests = [make_request("a", frames=6, context=6), make_request("bb", frames=6, context=6)]
    family = make_family(make_network(msgspec.structs.replace(CONFIG, hidden_size=128)))
    settings = {"page_size": 16, "workspace_tokens": 256, "codebook_overhead": 8.0}
    exact = run(make_engine(family, **{**settings, "kv_format": "dense"}), *requests)
    engine = make_engine(family, **{**settings, "kv_format": kv_format})
    coded = run(engine, *requests)
    for request in requests:
        name = request.request_id
        error = (coded.latents(name) - exact.latents(name)).square().mean()
        assert 0 < error / exact.latents(name).var() < 0.1
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize("max_batch_tokens", [65_536, 40, 1])
def test_streams_at_different_steps(max_batch_tokens: int) -> None:
    """Videos of several sizes are added one a step, so that all are at different passes."""
    waiting = [
        make_request("a"),
        make_request("b", context=0, conditions={"condition_frames": 1}),
        make_request("c", context=1, size=(2, 4)),
        make_request("d", frames=2, context=3, size=(6, 4)),
    ]
    expected = {item.request_id: rolled_out(item) for item in waiting}
    engine = make_engine(max_batch_tokens=max_batch_tokens)
    seen = dict.fromkeys(expected, False)
    while waiting or engine.has_unfinished_requests():
        if waiting:
            engine.add_request(waiting.pop(0))
        for output in engine.step():
            assert output.error is None
            if output.latents is not None:
                name = output.request_id
                assert largest_difference(output.latents, expected[name]) <= BAR
                seen[name] = True
        engine.check_integrity()
    assert all(seen.values())
    assert engine.stats().pages_used == 0


def test_start_and_abort_in_the_middle() -> None:
    engine = make_engine()
    engine.add_request(make_request("a"))
    engine.add_request(make_request("gone"))
    engine.step()
    engine.step()
    assert engine.abort_request("gone")
    engine.add_request(make_request("late"))
    ends: dict[str, str | None] = {}
    latents: dict[str, Tensor] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.latents is not None:
                latents[output.request_id] = output.latents
            if output.finished:
                ends[output.request_id] = output.finish_reason
        engine.check_integrity()
    assert ends == {"a": "length", "gone": "abort", "late": "length"}
    for name in ("a", "late"):
        assert largest_difference(latents[name], rolled_out(make_request(name))) <= BAR


def test_batch_invariant_videos_are_equal_bit_by_bit(run: Any) -> None:
    requests = [make_request("a"), make_request("bb", context=1), make_request("ccc", frames=2)]
    alone = {
        item.request_id: run(make_engine(batch_invariant=True), item).latents(item.request_id)
        for item in requests
    }
    together = run(make_engine(batch_invariant=True), *requests)
    for name, latents in alone.items():
        assert torch.equal(together.latents(name), latents)


def test_branches_share_pages_and_run_together() -> None:
    """Nothing but the condition is ever cached; it is replaced, not appended to."""
    engine = make_engine()
    request = make_request("a", frames=8, context=2, conditions={"condition_frames": 3})
    engine.add_request(request)
    manager = engine._cache.block_manager
    reserved = 0
    most = 0
    while engine.has_unfinished_requests():
        engine.step()
        if engine._streams:
            reserved = engine._streams["a"].program.needs.pages
        if manager.num_used:
            assert set(manager._pool.ref_counts[manager._pool.ref_counts > 0]) == {2}
        most = max(most, manager.num_used)
    assert most == reserved == -(-3 * 6 // 4)
    # Three segments of one commit and three steps.
    assert engine.stats().num_steps == 3 * 4


def test_prompt_switch_takes_effect_with_the_next_segment(run: Any) -> None:
    network = make_network()
    request = make_request("a", frames=6, context=2)
    assert request.noise is not None
    assert request.prompt_embeds is not None
    second = torch.full((3, 8), 0.5)
    expected = rollout(
        network,
        noise=request.noise,
        context=request.context_latents,
        prompts=[padded(network, rows, TEXT_LEN) for rows in (request.prompt_embeds, second)],
        negative=padded(network, negative_of(request), TEXT_LEN),
        settings=ReferenceSettings(
            segments=[(2, 3), (2, 3)],
            sigmas=[sigmas_of("standard", 3, tail=False)] * 2,
            guidance=4.0,
        ),
    )
    engine = make_engine(make_family(network))
    engine.add_request(request)
    chunks = []
    for step in range(100):
        if step == 2:
            engine.update_request("a", prompt_embeds=second)
        chunks += [item.latents for item in engine.step() if item.latents is not None]
        if not engine.has_unfinished_requests():
            break
    assert largest_difference(torch.cat(chunks), torch.cat(expected)) <= BAR


def test_a_condition_can_be_captured() -> None:
    request = make_request("a")
    capture = record_video(make_family(), make_engine().config, request)
    assert capture.chunk_tokens == (2 * 6,)
    assert {layer.keys.shape for layer in capture.layers.values()} == {(12, 2, 24)}
    with pytest.raises(ConfigError, match="replaces tokens"):
        record_video(make_family(), make_engine().config, make_request("a", frames=6))
    with pytest.raises(ConfigError, match="committed 0 of 1 chunks"):
        record_video(
            make_family(), make_engine().config, make_request("a", context=0), num_chunks=1
        )
