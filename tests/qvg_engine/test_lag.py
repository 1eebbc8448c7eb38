"""An engine that does not wait for its device: a step is settled by the one after it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest

Change = Callable[[VideoEngine, int], None]


def no_change(engine: VideoEngine, step: int) -> None:
    """Nothing happens between steps."""


def outputs_of(engine: VideoEngine, *, lags: bool, change: Change = no_change) -> dict[str, Any]:
    """Chunks by request, and why each ended; `change` is called before every step."""
    engine._lags = lags
    found: dict[str, Any] = {}
    step = 0
    while engine.has_unfinished_requests():
        change(engine, step)
        for output in engine.step():
            chunks, _ = found.setdefault(output.request_id, ([], None))
            if output.latents is not None:
                assert output.chunk_index == len(chunks)
                chunks.append(output.latents)
            found[output.request_id] = chunks, output.error or output.finish_reason
        engine.check_integrity()
        step += 1
    return found


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, (chunks, reason) in expected.items():
        assert found[name][1] == reason
        assert torch.equal(torch.cat(found[name][0]), torch.cat(chunks)), name


def pocket(kv_format: str) -> VideoEngine:
    # The third is let in a step later where a step is settled later.
    config = EngineConfig(kv_format=kv_format, kv_memory=2**24, max_streams=2, batch_invariant=True)
    engine = VideoEngine(config)
    for name, frames in (("a", 48), ("b", 36), ("c", 24)):
        engine.add_request(
            VideoRequest(
                request_id=name,
                prompt="a red circle over a green background, camera moving left",
                num_frames=frames,
                seed=len(name),
                output="latents",
            )
        )
    return engine


@pytest.mark.parametrize("kv_format", ["bf16", "q2", "qvg-pro"])
def test_videos_are_those_of_an_engine_that_waits(kv_format: str) -> None:
    """Streams come, go and refer to codebooks whose figures arrive late."""
    waiting = outputs_of(pocket(kv_format), lags=False)
    assert_equal(outputs_of(pocket(kv_format), lags=True), waiting)


def test_pieces_of_context_that_follow_each_other() -> None:
    """Each is a commit; what its codebooks do depends on the one before."""

    def engine() -> VideoEngine:
        engine = VideoEngine(EngineConfig(kv_format="q2", kv_memory=2**24))
        generator = torch.Generator().manual_seed(3)
        shape = engine.family.settings.latent_shape
        context = torch.randn(15, *shape, generator=generator)
        for name in ("a", "b"):
            request = VideoRequest(
                request_id=name,
                prompt="a blue square",
                num_frames=24,
                output="latents",
                context_latents=context,
            )
            engine.add_request(request)
        return engine

    assert_equal(outputs_of(engine(), lags=True), outputs_of(engine(), lags=False))


def test_a_switch_of_the_text_and_an_abort(toy: Any) -> None:
    def engine() -> VideoEngine:
        made: VideoEngine = toy.engine(settings={"window_frames": 9}, batch_invariant=True)
        for name in ("a", "b"):
            made.add_request(toy.request(name, chunks=4, prompt_embeds=torch.ones(2, 8)))
        return made

    def switch(engine: VideoEngine, step: int) -> None:
        if step == 12:
            engine.update_request("a", prompt_embeds=-torch.ones(3, 8))

    waiting = outputs_of(engine(), lags=False, change=switch)
    assert_equal(outputs_of(engine(), lags=True, change=switch), waiting)

    def abort(engine: VideoEngine, step: int) -> None:
        if step == 7:
            assert engine.abort_request("b")

    aborted = outputs_of(engine(), lags=True, change=abort)
    assert aborted["b"][1] == "abort"
    unswitched = outputs_of(engine(), lags=False)
    assert torch.equal(torch.cat(aborted["a"][0]), torch.cat(unswitched["a"][0]))


def test_no_chunk_of_a_bad_step_leaves(toy: Any) -> None:
    """The step that makes the second chunk gives NaN; it is known one step later."""
    expected = outputs_of(with_two(toy), lags=False)
    engine = with_two(toy)
    forward, calls = engine.family.forward, iter(range(1000))

    def poisoned(passes: Any, attention: Any, **options: Any) -> list[torch.Tensor]:
        flows: list[torch.Tensor] = forward(passes, attention, **options)
        if next(calls) == 8:
            flows[1] = flows[1] * float("nan")
        return flows

    engine.family.forward = poisoned  # type: ignore[method-assign]
    found = outputs_of(engine, lags=True)
    assert torch.equal(torch.cat(found["a"][0]), torch.cat(expected["a"][0]))
    chunks, reason = found["b"]
    assert "NaN" in reason
    assert len(chunks) == 1
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize("lags", [False, True])
def test_a_step_that_raises_keeps_what_was_to_leave(toy: Any, lags: bool) -> None:
    """An abort is answered by the step after the one that it was read in, if that raises."""
    engine = with_two(toy)
    engine._lags = lags
    engine.step()
    forward = engine.family.forward

    def failing(passes: Any, attention: Any, **options: Any) -> list[torch.Tensor]:
        raise RuntimeError("a kernel failed")

    engine.abort_request("b")
    engine.family.forward = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a kernel failed"):
        engine.step()
    engine.abort_request("a")
    engine.family.forward = forward  # type: ignore[method-assign]
    assert engine.has_unfinished_requests()
    ended = [(out.request_id, out.finish_reason) for out in engine.step()]
    assert ended == [("b", "abort"), ("a", "abort")]
    assert not engine.has_unfinished_requests()
    engine.check_integrity()


def with_two(toy: Any) -> VideoEngine:
    engine: VideoEngine = toy.engine(batch_invariant=True)
    for name in ("a", "b"):
        engine.add_request(toy.request(name, chunks=3))
    return engine


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no more"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
@pytest.mark.parametrize("failing_call", [0, 6])
def test_out_of_memory_ends_the_youngest_stream_alone(
    toy: Any, error: Exception, failing_call: int, lags: bool
) -> None:
    expected = outputs_of(with_two(toy), lags=False)
    engine = with_two(toy)
    forward, calls = engine.family.forward, iter(range(1000))

    def failing(passes: Any, attention: Any, **options: Any) -> list[torch.Tensor]:
        flows: list[torch.Tensor] = forward(passes, attention, **options)
        if next(calls) == failing_call:
            raise error
        return flows

    engine.family.forward = failing  # type: ignore[method-assign]
    found = outputs_of(engine, lags=lags)
    assert torch.equal(torch.cat(found["a"][0]), torch.cat(expected["a"][0]))
    assert found["a"][1] == "length"
    assert "memory ran out in a step of 2 streams" in found["b"][1]
    assert "\n" not in found["b"][1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kv_format", ["bf16", "q2", "qvg-pro"])
def test_the_host_does_not_wait_within_a_step(kv_format: str) -> None:
    engine = pocket(kv_format)
    # The first steps compile kernels, admit streams and fit codebooks.
    for _ in range(12):
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(12):
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
