"""The engine's manners: ends, failures, texts, threads."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from qvg_engine import EngineConfig, VideoRequest
from qvg_engine.errors import CapacityError, RequestError
from qvg_engine.models.noise import KeyedNoise
from qvg_engine.models.wan.program import WanProgram


def test_abort_in_the_middle_gives_back_everything(toy: Any) -> None:
    engine = toy.engine()
    engine.add_request(toy.request("a", chunks=6))
    engine.add_request(toy.request("b", chunks=6))
    for _ in range(12):
        engine.step()
    assert engine.stats().pages_used > 0
    assert engine.abort_request("a")
    assert engine.abort_request("b")
    outputs = engine.step()
    assert [(out.request_id, out.finish_reason) for out in outputs] == [
        ("a", "abort"),
        ("b", "abort"),
    ]
    assert engine.stats().pages_used == 0
    assert not engine.has_unfinished_requests()
    assert not engine.abort_request("a")
    engine.check_integrity()


def test_abort_while_waiting(toy: Any, run: Any) -> None:
    engine = toy.engine(max_streams=1)
    engine.add_request(toy.request("a"))
    engine.add_request(toy.request("b"))
    engine.step()
    engine.abort_request("b")
    assert engine.step()[0].finish_reason == "abort"
    assert run(engine).last("a").finish_reason == "length"


@pytest.mark.parametrize("failing_call", [0, 3, 4, 7])
def test_nan_ends_one_stream_only(toy: Any, run: Any, failing_call: int) -> None:
    """The NaN comes in through the noise of one stream, at a denoising or a commit pass."""
    expected = run(toy.engine(batch_invariant=True), toy.request("good")).latents("good")
    engine = toy.engine(batch_invariant=True)
    engine.add_request(toy.request("good"))
    engine.add_request(toy.request("bad"))
    forward, calls = engine.family.forward, iter(range(1000))

    def poisoned(passes: Any, attention: Any, **options: Any) -> list[torch.Tensor]:
        flows: list[torch.Tensor] = forward(passes, attention, **options)
        if next(calls) == failing_call:
            flows[-1][0, 0, 0, 0] = float("nan")
        return flows

    engine.family.forward = poisoned
    collected = run(engine)
    assert collected.last("bad").finish_reason == "error"
    assert "NaN" in collected.last("bad").error
    assert "\n" not in collected.last("bad").error
    assert torch.equal(collected.latents("good"), expected)


@pytest.mark.parametrize("failing_call", [0, 2, 4, 5, 9])
def test_a_failed_forward_leaves_every_stream_as_it_was(
    toy: Any, run: Any, failing_call: int
) -> None:
    expected = run(toy.engine(), toy.request("a"), toy.request("b"))
    engine = toy.engine()
    forward, calls = engine.family.forward, iter(range(1000))

    def failing(passes: Any, attention: Any, **options: Any) -> list[torch.Tensor]:
        flows: list[torch.Tensor] = forward(passes, attention, **options)
        if next(calls) == failing_call:
            raise RuntimeError("a kernel failed")
        return flows

    engine.family.forward = failing
    engine.add_request(toy.request("a"))
    engine.add_request(toy.request("b"))
    chunks: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    failures = 0
    while engine.has_unfinished_requests():
        try:
            outputs = engine.step()
        except RuntimeError:
            failures += 1
            engine.check_integrity()
            continue
        for output in outputs:
            chunks[output.request_id].append(output.latents)
    assert failures == 1
    for name in "ab":
        assert torch.equal(torch.cat(chunks[name]), expected.latents(name))


def test_streams_of_equal_prompts_share_their_text(toy: Any) -> None:
    engine = toy.engine()
    text = torch.ones(2, 8)
    engine.add_request(toy.request("a", prompt_embeds=text))
    engine.step()
    alone = engine.stats().text_bytes
    engine.add_request(toy.request("b", prompt_embeds=text.clone()))
    engine.step()
    assert engine.stats().text_bytes == alone > 0
    engine.add_request(toy.request("c", prompt_embeds=2 * text))
    engine.step()
    assert engine.stats().text_bytes == 2 * alone


def test_seeds_decide_the_noise(toy: Any, run: Any) -> None:
    def video(seed: int) -> torch.Tensor:
        request = toy.request("a", noise=None, num_frames=12, seed=seed)
        engine = toy.engine()
        engine.family.codec = FakeCodec()
        latents: torch.Tensor = run(engine, request).latents("a")
        return latents

    assert torch.equal(video(1), video(1))
    assert not torch.equal(video(1), video(2))


class FakeCodec:
    """Each latent frame is four grey frames; the state counts them."""

    latent_channels, spatial_factor, frames_per_second = 4, 1, 16

    def latent_frames(self, num_frames: int) -> int:
        return -(-num_frames // 4)

    def state_bytes(self, height: int, width: int) -> int:
        return 8

    def decode_chunk(self, latents: torch.Tensor, state: Any) -> Any:
        count = 0 if state is None else int(state[0])
        numbers = np.arange(count, count + 4 * len(latents), dtype=np.uint8)
        frames = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 4, 6, 3))
        return torch.from_numpy(frames.copy()), (torch.tensor(count + len(numbers)),)


def test_videos_are_decoded_in_order_and_cut_to_length(toy: Any) -> None:
    engine = toy.engine(decoder_slots=1)
    engine.family.codec = FakeCodec()
    engine._slots._codec = engine.family.codec
    for name, frames in (("a", 30), ("b", 12)):
        request = VideoRequest(
            request_id=name, prompt_embeds=torch.ones(1, 8), num_frames=frames, seed=3
        )
        engine.add_request(request)
    got: dict[str, list[int]] = {"a": [], "b": []}
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.frames.dtype == np.uint8
            got[output.request_id] += output.frames[:, 0, 0, 0].tolist()
        engine.check_integrity()
    assert got == {"a": list(range(30)), "b": list(range(12))}


def test_a_switched_text_equals_a_context_committed_under_it(
    toy: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a switch the rest is what a stream makes of the same latents under the new text."""
    settings = {"window_frames": 9}
    old, new = torch.ones(2, 8), -torch.ones(3, 8)
    engine = toy.engine(settings=settings)
    request = toy.request("a", chunks=4, prompt_embeds=old)
    engine.add_request(request)
    chunks: list[torch.Tensor] = []
    while len(chunks) < 2:
        chunks += [out.latents for out in engine.step()]
    engine.update_request("a", prompt_embeds=new)
    rest = run(engine).latents("a")

    context = torch.cat(chunks)
    fresh = toy.engine(settings={**settings, "frames_per_chunk": 3})
    continued = toy.request(
        "b", noise=request.noise[6:], prompt_embeds=new, context_latents=context
    )
    # One commit of six frames, as the switch makes it, not two of three.
    monkeypatch.setattr(WanProgram, "_split_context", lambda self: [context])
    renoised = run(fresh, with_renoise(continued, first_chunk=2))
    assert float((renoised.latents("b") - rest).abs().max()) <= 1e-4


def with_renoise(request: VideoRequest, *, first_chunk: int) -> VideoRequest:
    """The renoise that the chunks from `first_chunk` on draw from seed 0."""
    assert request.noise is not None
    keyed, shape = KeyedNoise(0), (3, 4, 4, 6)
    chunks = len(request.noise) // 3
    renoise = torch.stack(
        [
            torch.stack([keyed.renoise(first_chunk + chunk, step, shape) for step in range(3)])
            for chunk in range(chunks)
        ]
    )
    return VideoRequest(
        request_id=request.request_id,
        prompt_embeds=request.prompt_embeds,
        noise=request.noise,
        renoise=renoise,
        output="latents",
        context_latents=request.context_latents,
    )


def test_adding_and_aborting_from_other_threads(toy: Any) -> None:
    engine = toy.engine(max_streams=3)
    finished: list[str] = []

    def add(first: int) -> None:
        for number in range(first, first + 10):
            engine.add_request(toy.request(f"r{number}", chunks=1))
            if number % 3 == 0:
                engine.abort_request(f"r{number}")

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 10, 20)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.has_unfinished_requests():
        finished += [out.request_id for out in engine.step() if out.finished]
    assert sorted(finished) == sorted(f"r{number}" for number in range(30))
    engine.check_integrity()


def test_two_engines_live_in_one_process(toy: Any, run: Any) -> None:
    first, second = toy.engine(), toy.engine(page_size=8)
    first.add_request(toy.request("a"))
    first.step()
    alone = run(second, toy.request("a")).latents("a")
    assert torch.allclose(run(first).latents("a"), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt_embeds": torch.ones(7, 8)}, "prompt_embeds"),
        ({"prompt_embeds": torch.ones(2, 9)}, "prompt_embeds"),
        ({"prompt_embeds": torch.full((2, 8), float("nan"))}, "NaN"),
        ({"prompt_embeds": None, "prompt": "a cat"}, "no text encoder"),
        ({"noise": torch.ones(4, 4, 4, 6)}, "multiple of frames_per_chunk"),
        ({"noise": torch.ones(3, 5, 4, 6)}, "channels"),
        ({"noise": torch.ones(3, 4, 5, 6)}, "patch"),
        ({"noise": torch.full((3, 4, 4, 6), float("inf"))}, "noise has NaN or Inf"),
        ({"renoise": torch.ones(1, 3, 3, 4, 4, 6)}, "renoise"),
        ({"context_latents": torch.ones(3, 4, 4, 8)}, "context_latents"),
        ({"output": "video"}, "no VAE"),
        ({"noise": None, "num_frames": 12}, "no VAE"),
    ],
)
def test_bad_requests_are_refused(toy: Any, fields: dict[str, Any], words: str) -> None:
    engine = toy.engine()
    with pytest.raises(RequestError, match=words) as caught:
        engine.add_request(toy.request("a", **fields))
    assert "\n" not in str(caught.value)
    assert not engine.has_unfinished_requests()


def test_a_video_that_can_never_fit_is_refused_with_numbers(toy: Any) -> None:
    engine = toy.engine(kv_memory=20 * 4 * 2 * 48 * 2 * 4)
    with pytest.raises(CapacityError, match=r"\d+ pages of 20"):
        engine.add_request(toy.request("a", chunks=20))
    engine.add_request(toy.request("a", chunks=3))
    with pytest.raises(RequestError, match="in use"):
        engine.add_request(toy.request("a", chunks=3))


def test_a_network_of_another_size_gets_a_clear_error(toy: Any) -> None:
    with pytest.raises(ValueError, match="latent_shape"):
        toy.family(latent_shape=(7, 4, 6))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kv_format": "q9"}, "unknown page format 'q9'"),
        ({"page_size": -1}, "page_size"),
        ({"kv_memory": 0}, "kv_memory"),
        ({"workspace_tokens": 0}, "workspace_tokens"),
        ({"device": "tpu"}, "device"),
        ({"dtype": "int8"}, "dtype"),
        ({"attention_backend": "magic"}, "attention_backend"),
        ({"decoder_slots": -1}, "decoder_slots"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineConfig(**fields)


def test_memory_that_is_not_there_is_a_clear_error(toy: Any) -> None:
    with pytest.raises(ValueError, match="cannot be allocated") as caught:
        toy.engine(kv_memory=2**50)
    assert "\n" not in str(caught.value)
