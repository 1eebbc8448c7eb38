"""Which strategy an engine settles on, and what it says of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.attention_choice import AttentionChoice, choose_attention
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.paged_attention import LayerPages, Workspace
from qvg_engine.kernels.paged_attention.cost_model import Cost, CostModel
from tests.qvg_engine.test_backend_check import make_layers

Timer = Callable[[Callable[[], object]], float]

MODEL = CostModel(
    {
        "workspace": Cost(fixed=0.1, per_pair=1e-8, per_token=1e-6),
        "fused": Cost(fixed=0.1, per_pair=2e-8, per_token=0.0),
    }
)


def make_workspace() -> Workspace:
    return Workspace(num_heads=1, head_dim=128, max_tokens=8, device="cpu", dtype=torch.float32)


def choose(layers: list[LayerPages], *, timer: Timer | None = None, **config: Any) -> Any:
    settings = EngineConfig(**{"device": "cpu", "dtype": "float16", **config})
    return choose_attention(settings, layers, make_workspace(), queries=192, timer=timer)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The fused kernel is there, as on a GPU; what `measure_costs` is given, it returns MODEL."""
    given: list[dict[str, Any]] = []

    def measure(like: LayerPages, workspace: Workspace, *, points: Any, timer: Timer) -> CostModel:
        given.append({"like": like, "points": points})
        if timer is not None:
            timer(lambda: None)
        return MODEL

    monkeypatch.setattr("qvg_engine.attention_choice.why_not_fused", lambda *_, **__: None)
    monkeypatch.setattr("qvg_engine.attention_choice.measure_costs", measure)
    return given


def test_auto_is_the_default_and_takes_the_workspace_on_a_cpu() -> None:
    choice = choose(make_layers("q2"))
    assert (choice.strategy, choice.costs) == ("workspace", None)
    assert choice.reason == (
        "the fused kernel is not offered: it needs a CUDA device, and this is 'cpu'"
    )
    assert choice.strategy_for(1, 1_000_000) == "workspace"


@pytest.mark.parametrize("backend", ["workspace", "reference"])
def test_what_is_asked_for_is_taken(backend: str) -> None:
    choice = choose(make_layers("q2"), attention_backend=backend)
    assert choice.strategy_for(1, 100) == choice.strategy_for(5000, 100_000) == backend
    assert choice.reason == f"attention_backend is {backend!r}"


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be had"):
        choose(make_layers("q2"), attention_backend="fused")


def test_where_both_are_there_the_times_decide(offered: list[dict[str, Any]]) -> None:
    choice = choose(make_layers("q2"))
    assert choice.strategy == "auto"
    assert choice.strategy_for(64, 10_000) == "fused"
    assert choice.strategy_for(4680, 10_000) == "workspace"
    assert choice.strategy_for(64, 0) == "workspace"
    assert max(queries for queries, _ in offered[0]["points"]) == 192


def test_layers_of_most_formats_are_measured(offered: list[dict[str, Any]]) -> None:
    layers = [make_layers(name)[0] for name in ("q4", "q1", "q2", "q2", "q1", "q2")]
    choose(layers)
    assert offered[0]["like"] is layers[2]


def test_batch_invariant_videos_do_not_depend_on_times(offered: list[dict[str, Any]]) -> None:
    choice = choose(make_layers("q2"), batch_invariant=True)
    assert choice.strategy == "workspace"
    assert choice.reason.startswith("batch_invariant is set")
    assert offered == []


def test_in_float32_the_fused_kernel_is_not_chosen(offered: list[dict[str, Any]]) -> None:
    choice = choose(make_layers("q2"), dtype="float32")
    assert (choice.strategy, offered) == ("workspace", [])
    assert choice.reason == "in float32 the fused kernel would spill registers"


def test_without_memory_to_measure_the_workspace_is_taken(offered: list[dict[str, Any]]) -> None:
    def fail(run: Callable[[], object]) -> float:
        raise torch.OutOfMemoryError("too large")

    choice = choose(make_layers("q2"), timer=fail)
    assert choice.strategy == "workspace"
    assert "no memory left" in choice.reason


def test_a_kernel_that_fails_is_told_and_not_taken(offered: list[dict[str, Any]]) -> None:
    def fail(run: Callable[[], object]) -> float:
        raise ValueError("shared memory:\n115 KB of 99")

    with pytest.warns(UserWarning, match="could not be measured: ValueError: shared memory"):
        choice = choose(make_layers("q2"), timer=fail)
    assert choice.strategy == "workspace"
    assert choice.reason.endswith("ValueError: shared memory: 115 KB of 99")


def test_an_engine_asks_for_every_pass(toy: Any, run: Any) -> None:
    """With the queries and cached tokens of the pass; what is chosen changes nothing."""
    asked = set()

    class Costs(CostModel):
        def choose(self, queries: int, tokens: int) -> Any:
            asked.add((queries, tokens))
            return "workspace" if tokens == 18 else "reference"

    expected = run(toy.engine(), toy.request("a")).latents("a")
    engine = toy.engine()
    engine._cache.attention = AttentionChoice(strategy="auto", reason="", costs=Costs(MODEL.costs))
    latents = run(engine, toy.request("a")).latents("a")
    # Chunks of three frames of six tokens; text is no cached token.
    assert asked == {(18, 0), (18, 18), (18, 36)}
    assert (latents - expected).abs().max() <= 1e-4


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_it_is_measured_with_the_engine_s_own_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the device: Triton's interpreter, at points that it can do."""
    monkeypatch.setattr("qvg_engine.attention_choice.why_not_fused", lambda *_, **__: None)
    monkeypatch.setattr(
        "qvg_engine.attention_choice.measured_points",
        lambda queries: ((64, 32), (64, 64), (128, 64)),
    )
    times = iter([2.0, 1.0, 3.0, 1.5, 3.5, 9.0])
    strategies = []

    def timer(run: Callable[[], object]) -> float:
        strategies.append(run.args[0])  # type: ignore[attr-defined]
        assert isinstance(run(), torch.Tensor)
        return next(times)

    choice = choose(make_layers("qvg", page_size=32), timer=timer)
    assert strategies == ["workspace", "fused"] * 3
    assert (choice.strategy_for(64, 48), choice.strategy_for(128, 64)) == ("fused", "workspace")
    assert choice.reason == "as measured, for 192 queries"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_an_engine_on_a_gpu_measures_and_generates() -> None:
    engine = VideoEngine(EngineConfig(device="cuda", dtype="bfloat16", kv_memory=64 * 2**20))
    choice = engine._cache.attention
    assert choice.strategy == "auto", choice.reason
    (video,) = engine.generate(["a red circle over a green background"], num_frames=60)
    assert len(video.frames) == 60
