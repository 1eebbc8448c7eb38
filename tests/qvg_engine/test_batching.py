"""Many streams in one forward: the same results, one matrix, bounded memory."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from qvg_engine import VideoEngine, VideoRequest
from qvg_engine.models.wan.rows import PassSplits
from qvg_engine.runner import Runner, StepResult
from qvg_engine.step_attention import PassReads, StepAttention


def mixed_requests(toy: Any) -> list[VideoRequest]:
    """Eight videos of different lengths, sizes and seeds."""
    return [
        toy.request("a", chunks=4),
        toy.request("b", chunks=3, size=(2, 4)),
        toy.request("c", chunks=3, size=(8, 6)),
        toy.request("d", chunks=4),
        toy.request("e", chunks=3, prompt_embeds=torch.ones(1, 8)),
        toy.request("f", chunks=2, size=(4, 2)),
        toy.request("g", chunks=3, context_latents=torch.randn(4, 4, 4, 6)),
        toy.request("h", chunks=2, size=(6, 6)),
    ]


def run_staggered(engine: VideoEngine, requests: list[VideoRequest]) -> dict[str, torch.Tensor]:
    """Add a request a step, so that streams are at different passes."""
    waiting = list(requests)
    chunks: dict[str, list[torch.Tensor]] = {}
    while waiting or engine.has_unfinished_requests():
        if waiting:
            engine.add_request(waiting.pop(0))
        for output in engine.step():
            assert output.finish_reason != "error", output.error
            if output.latents is not None:
                chunks.setdefault(output.request_id, []).append(output.latents)
        engine.check_integrity()
    return {request_id: torch.cat(parts) for request_id, parts in chunks.items()}


def test_a_pass_alone_equals_the_pass_in_a_batch(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass of eight mixed streams is run again alone, over the same pages."""
    worst = []
    run = Runner.run

    def run_twice(self: Runner, plan: Any, streams: Any) -> StepResult:
        result = run(self, plan, streams)
        flows = result.flows
        inputs = [x for name in plan.request_ids for x in streams[name].program.pass_inputs()]
        reads = self._reads(plan.units, inputs, streams)
        for flow, item, read in zip(flows, inputs, reads, strict=True):
            alone = PassReads(
                rows=slice(0, read.rows.stop - read.rows.start),
                positions=read.positions,
                pages=read.pages,
                transform=read.transform,
                text=read.text,
                commit=None,
            )
            attention = StepAttention(
                [alone],
                store=self._cache.store,
                workspace=self._cache.workspace,
                strategy_for=lambda queries, tokens: "workspace",
            )
            (expected,) = self._family.forward([item], attention, batch_invariant=False)
            worst.append((len(flows), float((flow - expected).abs().max())))
        return result

    monkeypatch.setattr(Runner, "run", run_twice)
    run_staggered(toy.engine(), mixed_requests(toy))
    assert max(num_passes for num_passes, _ in worst) == 8
    assert max(difference for _, difference in worst) <= 1e-5


def test_videos_alone_equal_videos_in_a_batch(toy: Any, run: Any) -> None:
    together = run_staggered(toy.engine(settings={"window_frames": 6}), mixed_requests(toy))
    for request in mixed_requests(toy):
        if request.request_id == "g":
            continue
        alone = run(toy.engine(settings={"window_frames": 6}), request)
        difference = together[request.request_id] - alone.latents(request.request_id)
        assert float(difference.abs().max()) <= 1e-4


@pytest.mark.parametrize("kv_format", ["dense", "bf16"])
def test_batch_invariant_videos_are_bit_equal(toy: Any, run: Any, kv_format: str) -> None:
    requests = mixed_requests(toy)
    settings = {"window_frames": 6, "sink_frames": 1}
    engine = toy.engine(settings=settings, batch_invariant=True, kv_format=kv_format)
    together = run_staggered(engine, requests)
    for request in requests:
        engine = toy.engine(settings=settings, batch_invariant=True, kv_format=kv_format)
        alone = run(engine, request).latents(request.request_id)
        assert torch.equal(together[request.request_id], alone)


def test_splits_follow_the_passes() -> None:
    splits = PassSplits((12, 6), (3, 1))
    assert splits.frames_view() == PassSplits((3, 1), (3, 1))


def test_every_linear_sees_all_passes_once_a_step(toy: Any) -> None:
    """All but the text's keys and values, which are computed once a prompt."""
    engine = toy.engine()
    seen: list[Counter[str]] = []

    def watch(name: str) -> Any:
        return lambda module, inputs, output: seen[-1].update({f"{name} {len(inputs[0])}": 1})

    names = []
    for block in toy.network.blocks:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear) and name not in ("cross_attn.k", "cross_attn.v"):
                names.append(f"{id(block)} {name}")
                module.register_forward_hook(watch(names[-1]))
    for request in mixed_requests(toy)[:4]:
        engine.add_request(request)
    num_tokens = 3 * (6 + 2 + 12 + 6)
    for _ in range(4):
        seen.append(Counter())
        engine.step()
        assert seen[-1] == Counter({f"{name} {num_tokens}": 1 for name in names})


def test_token_budget_splits_steps(toy: Any, run: Any) -> None:
    engine = toy.engine(max_batch_tokens=20)
    collected = run(engine, *(toy.request(name, chunks=1) for name in "abcd"))
    assert all(collected.last(name).finish_reason == "length" for name in "abcd")
    assert engine.stats().mean_streams_per_step == 1.0


def test_memory_does_not_grow_with_the_video(toy: Any, run: Any) -> None:
    figures = []
    for chunks in (6, 24):
        engine = toy.engine(settings={"window_frames": 6})
        run(engine, toy.request("a", chunks=chunks))
        figures.append(engine.stats())
    short, long = figures
    assert long.workspace_bytes == short.workspace_bytes
    assert long.kv_bytes_peak == short.kv_bytes_peak
    assert long.kv_ratio == short.kv_ratio


def test_kv_figures_count_pages_at_their_peak(toy: Any, run: Any) -> None:
    engine = toy.engine(kv_format="bf16", page_size=4)
    run(engine, toy.request("a", chunks=3, trace=True))
    tokens, pages = 3 * 18, 3 * 5
    bytes_per_token = 2 * 2 * 2 * 2 * 24
    stats = engine.stats()
    assert stats.kv_bytes_bf16 == tokens * bytes_per_token
    assert stats.kv_bytes_peak == pages * 4 * bytes_per_token
    assert stats.kv_ratio == pytest.approx(tokens / (pages * 4))
    assert stats.total_ratio < stats.kv_ratio
