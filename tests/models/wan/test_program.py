"""Wan's pass program: which passes, and how many pages at the peak."""

from typing import Any

import pytest
import torch

from qvg_engine import VideoEngine

CONFIGURATIONS = [
    pytest.param({"window_frames": None}, 4, 0, id="full history"),
    pytest.param({"window_frames": 6}, 7, 0, id="window"),
    pytest.param({"window_frames": 7, "sink_frames": 1}, 7, 4, id="window, sink, context"),
    pytest.param({"window_frames": 8, "sink_frames": 4}, 8, 0, id="window that cuts chunks"),
    pytest.param({"window_frames": 3}, 4, 2, id="no history"),
]


def used_pages(engine: VideoEngine, *, switch_after: int | None) -> int:
    """The most pages in use at any time; the text is switched after so many steps."""
    most = steps = 0
    manager = engine._cache.block_manager
    begin = manager.begin_commit

    def begin_and_count(*args: Any, **options: Any) -> Any:
        nonlocal most
        commit = begin(*args, **options)
        most = max(most, manager.num_used)
        return commit

    manager.begin_commit = begin_and_count  # type: ignore[method-assign]
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None
        steps += 1
        if steps == switch_after and engine.has_unfinished_requests():
            engine.update_request("a", prompt_embeds=torch.full((5, 8), 0.5))
    return most


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize(("settings", "chunks", "context"), CONFIGURATIONS)
def test_reserved_pages_are_the_peak(
    toy: Any, settings: dict[str, Any], chunks: int, context: int, page_size: int
) -> None:
    def engine_with_request() -> VideoEngine:
        engine: VideoEngine = toy.engine(settings=settings, page_size=page_size)
        latents = torch.randn(context, 4, 4, 6) if context else None
        engine.add_request(toy.request("a", chunks=chunks, context_latents=latents))
        engine.step()
        return engine

    engine = engine_with_request()
    reserved = engine._streams["a"].program.needs.pages
    plain = used_pages(engine, switch_after=None)
    # A switched text packs the window anew, which may take a page more.
    assert reserved - 1 <= plain <= reserved
    for switch_after in (1, 4, 7, 12, 15, 22):
        assert used_pages(engine_with_request(), switch_after=switch_after) <= reserved


def test_last_chunk_is_committed_only_for_a_trace(toy: Any, run: Any) -> None:
    for trace, steps in ((False, 3 * 5 - 1), (True, 3 * 5)):
        engine = toy.engine()
        run(engine, toy.request("a", chunks=3, trace=trace))
        assert engine.stats().num_steps == steps


def test_trace_names_every_pass(toy: Any, run: Any) -> None:
    request = toy.request("a", chunks=1, trace=True, context_latents=torch.randn(4, 4, 4, 6))
    trace = run(toy.engine(), request).last("a").trace
    named = [(record.chunk_index, record.step) for record in trace.passes]
    assert named == [(-2, None), (-1, None), (0, 0), (0, 1), (0, 2), (0, 3), (0, None)]
    # One frame that is left over goes first, as the image of image-to-video does.
    assert [len(record.x0) for record in trace.passes[:2]] == [1, 3]
    assert trace.token_numbers[0].tolist() == list(range(7 * 6))
