"""Toy rollouts against a plain loop: memory, guidance, prompt switches, many at once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qvg_engine.errors import ConfigError
from qvg_engine.models.worldplay.actions import action_labels
from qvg_engine.models.worldplay.cameras import CameraPath
from qvg_engine.models.worldplay.memory import NUM_POINTS, default_points
from qvg_engine.models.worldplay.settings import MEMORY_RADIUS
from qvg_engine.quality.recorder import record_video
from tests.models.worldplay.plain import PlainVideo
from tests.models.worldplay.toy import (
    KINDS,
    SHAPE,
    STEPS,
    TEXT_DIM,
    make_engine,
    make_family,
    make_request,
    pose_of,
    random,
)

BAR = 1e-4
CHUNKS = 8


def few_points() -> Tensor:
    """Enough to tell groups apart, and few enough for a plain loop."""
    return default_points()[:1500]


def keys_values(family: Any, kind: str, rows: Tensor, conditions: Any, glyphs: Any) -> Any:
    """K and V of a branch's text, padded or joined as the model has it."""
    if kind == "5b":
        padding = torch.zeros(family.settings.text_len - len(rows), rows.shape[1])
        return family.text_keys_values(torch.cat([rows, padding]))
    with torch.no_grad():
        tokens = family.network.text_tokens(rows, glyphs, conditions.image_embeds)
        return family.network.text_keys_values(tokens)


def plain_video(family: Any, kind: str, request: Any, switched: Any = None) -> PlainVideo:
    """The plain loop of a request; `switched` is (chunk, rows) of a prompt switch."""
    conditions = request.conditions
    path = CameraPath.from_pose_string(conditions.pose)

    def texts(chunk: int) -> Any:
        rows, glyphs = request.prompt_embeds, conditions.glyph_embeds
        if switched is not None and chunk >= switched[0]:
            rows, glyphs = switched[1], None
        pairs = [keys_values(family, kind, rows, conditions, glyphs)]
        if conditions.negative_prompt_embeds is not None:
            negative = conditions.negative_prompt_embeds
            glyphs = conditions.negative_glyph_embeds
            pairs.append(keys_values(family, kind, negative, conditions, glyphs))
        return pairs

    return PlainVideo(
        family=family,
        texts=texts,
        noise=request.noise,
        cameras=path,
        labels=action_labels(path.world_to_camera),
        guidance=conditions.guidance_scale or 1.0,
        image=conditions.image_latents[0],
        points=conditions.memory_points,
        steps=STEPS,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_equals_a_plain_loop(kind: str, guidance: float, run: Any) -> None:
    family = make_family(kind)
    negative: dict[str, Any] = (
        {} if guidance == 1 else {"negative_prompt_embeds": random(9, 2, TEXT_DIM)}
    )
    request = make_request(
        kind,
        chunks=CHUNKS,
        pose=pose_of(CHUNKS),
        memory_points=few_points(),
        guidance_scale=guidance,
        trace=True,
        **negative,
    )
    expected, memories = plain_video(family, kind, request).run()
    chosen = set(memories[-1]) - {0, 1, 2, 3} - set(range(20, 28))
    assert len(memories[-1]) == 16
    assert len(chosen) == 4
    assert max(chosen) < 16, "the nearest in time is not what was seen from here"
    collected = run(make_engine(family), request)
    assert float((collected.latents("a") - expected).abs().max()) <= BAR
    trace = collected.last("a").trace
    assert len(trace.caches) == (1 if guidance == 1 else 2)
    assert all(
        len(numbers) == len(memories[-1]) * family.tokens_per_frame
        for numbers in trace.token_numbers
    )


@pytest.mark.parametrize("kind", KINDS)
def test_branches_remember_apart(kind: str, run: Any) -> None:
    request = make_request(
        kind,
        pose=pose_of(3),
        guidance_scale=3.0,
        negative_prompt_embeds=random(9, 2, TEXT_DIM),
        trace=True,
    )
    first, second = run(make_engine(make_family(kind)), request).last("a").trace.caches
    assert float((first[1].keys - second[1].keys).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_switch_takes_effect_from_the_next_chunk_on(kind: str, run: Any) -> None:
    family = make_family(kind)
    request = make_request(kind, chunks=4, pose=pose_of(4), memory_points=few_points())
    rows = random(77, 4, TEXT_DIM)
    expected, _ = plain_video(family, kind, request, (2, rows)).run()
    other = make_request(kind, "b", chunks=3, pose="left-11")
    untouched = run(make_engine(family), other).latents("b")
    engine = make_engine(family)
    engine.add_request(request)
    engine.add_request(other)
    parts: dict[str, list[Tensor]] = {"a": [], "b": []}
    steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None, output.error
            parts[output.request_id] += [] if output.latents is None else [output.latents]
        engine.check_integrity()
        steps += 1
        if steps == 4:
            # Chunk 0 took two steps; chunk 1 has its memory and one of two steps.
            engine.update_request("a", prompt_embeds=rows)
    assert float((torch.cat(parts["a"]) - expected).abs().max()) <= BAR
    assert float((torch.cat(parts["b"]) - untouched).abs().max()) <= BAR


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_many_videos_with_starts_and_ends_in_the_middle(
    kind: str, batch_invariant: bool, run: Any
) -> None:
    family = make_family(kind)
    requests = [
        make_request(kind, "a", chunks=4, pose=pose_of(4)),
        make_request(
            kind, "b", chunks=2, pose="w-7", noise=random(8, 8, 4, 4, 6), image_latents=None
        ),
        make_request(
            kind,
            "c",
            chunks=3,
            pose="up-5,d-6",
            guidance_scale=2.0,
            negative_prompt_embeds=random(5, 1, TEXT_DIM),
        ),
        make_request(kind, "gone", chunks=4),
        make_request(kind, "e", chunks=3, pose="s-4,left-7"),
    ]
    alone = {
        request.request_id: run(
            make_engine(family, batch_invariant=batch_invariant), request
        ).latents(request.request_id)
        for request in requests
        if request.request_id != "gone"
    }
    engine = make_engine(family, batch_invariant=batch_invariant)
    waiting = list(requests)
    parts: dict[str, list[Tensor]] = {}
    steps = 0
    while waiting or engine.has_unfinished_requests():
        if waiting:
            engine.add_request(waiting.pop(0))
        if steps == 6:
            assert engine.abort_request("gone")
        for output in engine.step():
            assert output.finish_reason != "error", output.error
            if output.latents is not None:
                parts.setdefault(output.request_id, []).append(output.latents)
        engine.check_integrity()
        steps += 1
    for name, expected in alone.items():
        difference = float((torch.cat(parts[name]) - expected).abs().max())
        assert difference == 0 if batch_invariant else difference <= BAR, name
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_format", ["bf16", "qvg", "qvg-pro", "q4", "q2", "q1"])
def test_every_format_runs(kind: str, kv_format: str, run: Any) -> None:
    family = make_family(kind)
    request = make_request(kind, chunks=3, pose=pose_of(3))
    exact = run(make_engine(family), request).latents("a")
    latents = run(make_engine(family, kv_format=kv_format), request).latents("a")
    assert torch.equal(latents[:4], exact[:4]), "the first chunk reads no page"
    error = float((latents[4:] - exact[4:]).square().mean() / exact[4:].var())
    assert 0 < error < 0.2, error


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_goes_on_from_its_own_latents(kind: str, run: Any) -> None:
    family = make_family(kind, keeps_image=False)
    image = None if kind == "5b" else random(1, 1, *SHAPE)
    noise = random(2, 16, *SHAPE)
    fields: dict[str, Any] = {"pose": pose_of(4), "image_latents": image}
    whole = run(make_engine(family), make_request(kind, noise=noise, **fields)).latents("a")
    rest = make_request(kind, context_latents=whole[:8], noise=noise[8:], **fields)
    latents = run(make_engine(family), rest).latents("a")
    assert float((latents - whole[8:]).abs().max()) <= BAR


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page_size", [1, 8, 64])
def test_reserved_pages_are_the_peak(kind: str, page_size: int) -> None:
    family = make_family(kind)
    engine = make_engine(family, page_size=page_size)
    engine.add_request(make_request(kind, chunks=7, pose=pose_of(7)))
    engine.step()
    reserved = engine._streams["a"].program.needs.pages
    used = 0
    while engine.has_unfinished_requests():
        engine.step()
        used = max(used, engine.stats().pages_used)
    assert used == reserved == -(-16 * family.tokens_per_frame // page_size)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_take_their_place_once(kind: str) -> None:
    """The originals keep a rotated and a projected copy of both: twice as much."""
    engine = make_engine(make_family(kind), kv_format="bf16")
    engine.add_request(make_request(kind, chunks=7))
    while engine.has_unfinished_requests():
        engine.step()
    tokens = 16 * engine.family.tokens_per_frame
    assert engine.stats().kv_bytes_peak == 2 * 2 * 64 * 2 * tokens


@pytest.mark.parametrize("rounds", [None, True])
def test_latents_are_rounded_where_that_is_asked(rounds: bool | None, run: Any) -> None:
    family = make_family("8b", round_latents=rounds)
    latents = run(make_engine(family), make_request("8b")).latents("a")
    assert torch.equal(latents, latents.bfloat16().float()) == bool(rounds)


def test_networks_in_bf16_round(run: Any) -> None:
    family = make_family("8b")
    family.network.bfloat16()
    halved = type(family)(family.network, family.settings)
    latents = run(make_engine(halved, dtype="bfloat16"), make_request("8b")).latents("a")
    assert torch.equal(latents, latents.bfloat16().float())
    assert latents.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_that_is_replaced_cannot_be_captured(kind: str) -> None:
    request = make_request(kind, chunks=2, pose="w-7")
    with pytest.raises(ConfigError, match="replaces tokens"):
        record_video(make_family(kind), make_engine(make_family(kind)).config, request)


def test_the_image_is_the_first_frame(run: Any) -> None:
    image = random(1, 1, *SHAPE)
    request = make_request("5b", image_latents=image)
    latents = run(make_engine(make_family("5b")), request).latents("a")
    assert torch.equal(latents[:1], image)


def test_points_fill_the_ball() -> None:
    radius = default_points().norm(dim=1)
    assert radius.shape == (NUM_POINTS,)
    assert float(radius.max()) <= MEMORY_RADIUS
    assert abs(float((radius < MEMORY_RADIUS / 2).float().mean()) - 1 / 8) < 0.01
