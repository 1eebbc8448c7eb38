"""Measuring what strategies cost: on the CPU, in Triton's interpreter, and with a made-up clock."""

from collections.abc import Callable

import pytest
import torch

from qvg_engine.kernels.codec import (
    PRESETS,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    half_split_groups,
)
from qvg_engine.kernels.codec.random_pages import random_like, shuffled_runs
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.paged_attention import LayerPages, Workspace, decode
from qvg_engine.kernels.paged_attention.cost_measurement import (
    MANY_TOKENS,
    MOST_QUERIES,
    Points,
    device_timer,
    measure_costs,
    measured_points,
)
from qvg_engine.kernels.paged_attention.cost_model import Cost

HEADS, HEAD_DIM = 1, 64
CPU = torch.device("cpu")
POINTS: Points = ((64, 64), (64, 128), (128, 128))

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")


def pattern(name: str) -> LayerPages:
    """Pages without memory."""
    spec = PRESETS[name].for_head_dim(HEAD_DIM)

    def make(*, is_key: bool) -> object:
        groups = half_split_groups if is_key else consecutive_groups
        return allocate_pages(
            spec,
            num_pages=1,
            num_heads=HEADS,
            page_size=64,
            head_dim=HEAD_DIM,
            row_table=consecutive_slots(spec, 1),
            device="meta",
            channel_groups=groups(HEAD_DIM, spec.group),
            refinement_pages=1 if spec.trellis else 0,
        )

    return LayerPages(keys=make(is_key=True), values=make(is_key=False))  # type: ignore[arg-type]


def make_workspace() -> Workspace:
    return Workspace(
        num_heads=HEADS, head_dim=HEAD_DIM, max_tokens=100, device=CPU, dtype=torch.float32
    )


@pytest.mark.parametrize("name", list(PRESETS))
def test_random_pages_hold_sensible_numbers(name: str) -> None:
    like = pattern(name)
    before = torch.random.get_rng_state()
    for part in (like.keys, like.values):
        pages = random_like(part, num_pages=3, device=CPU)  # type: ignore[arg-type]
        assert (pages.spec, pages.num_pages) == (like.keys.spec, 3)  # type: ignore[union-attr]
        rows = torch.full((HEADS, 150, HEAD_DIM), torch.nan)
        decode(pages, shuffled_runs(150, page_size=64), rows, start=0, rope=None)
        assert 0.3 < rows.std() < 10
        assert rows.abs().max() < 100
    assert torch.equal(torch.random.get_rng_state(), before)


def test_points_can_be_fitted_for_any_number_of_queries() -> None:
    for queries in (1, 100, 4680, 75_600):
        points = measured_points(queries)
        assert len({number for number, _ in points}) == 2
        assert len({tokens for _, tokens in points}) == 2
        assert max(number for number, _ in points) <= MOST_QUERIES
        assert max(tokens for _, tokens in points) == MANY_TOKENS


@needs_triton
def test_every_strategy_is_measured_at_every_point() -> None:
    """A clock that looks at what runs: the model is that of its times."""
    true = {
        "workspace": Cost(fixed=1.0, per_pair=1e-4, per_token=1e-2),
        "fused": Cost(fixed=0.5, per_pair=4e-4, per_token=0.0),
    }
    seen: list[tuple[int, str]] = []

    def timer(run: Callable[[], object]) -> float:
        (strategy,) = run.args  # type: ignore[attr-defined]
        out = run()
        assert isinstance(out, torch.Tensor)
        assert out.isfinite().all()
        point = POINTS[len(seen) // 2]
        assert out.shape == (point[0], HEADS, HEAD_DIM)
        seen.append((len(out), strategy))
        return true[strategy].ms(*point)

    model = measure_costs(pattern("q2"), make_workspace(), points=POINTS, timer=timer)
    assert seen == [(q, name) for q, _ in POINTS for name in ("workspace", "fused")]
    for name, cost in model.costs.items():
        assert cost.ms(500, 3000) == pytest.approx(true[name].ms(500, 3000), rel=1e-6)


@needs_triton
def test_the_strategies_compute_the_same_of_random_pages() -> None:
    found: list[torch.Tensor] = []

    def timer(run: Callable[[], object]) -> float:
        out = run()
        assert isinstance(out, torch.Tensor)
        found.append(out)
        return 1.0

    measure_costs(pattern("q4"), make_workspace(), points=POINTS, timer=timer)
    for workspace, fused in zip(found[::2], found[1::2], strict=True):
        assert (workspace - fused).abs().max() <= 1e-4 * workspace.abs().max()


def test_the_timer_on_a_cpu_leaves_the_first_call_out() -> None:
    calls: list[int] = []
    timer = device_timer(CPU)
    assert 0 < timer(lambda: calls.append(1)) < 1000
    assert len(calls) == 2


def test_on_a_gpu_the_host_is_ahead_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    times = iter([9.0, 2.0, 3.0, 1.0, 40.0])

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            happened.append("event")

        def elapsed_time(self, end: "Event") -> float:
            assert happened[-1] == "synchronize"
            return next(times)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: happened.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: happened.append("synchronize"))
    assert device_timer(torch.device("cuda"))(lambda: happened.append("run")) == 3.0
    assert happened == ["run", "sleep", *["event", "run", "event"] * 5, "synchronize"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu() -> None:
    device = torch.device("cuda")
    workspace = Workspace(
        num_heads=HEADS, head_dim=HEAD_DIM, max_tokens=4096, device=device, dtype=torch.bfloat16
    )
    model = measure_costs(pattern("qvg"), workspace, points=measured_points(1560))
    for cost in model.costs.values():
        assert 0 < cost.ms(1560, 16_384) < 1000
