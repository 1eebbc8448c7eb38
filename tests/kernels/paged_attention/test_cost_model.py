"""Fitting and choosing, on times that are made up."""

import pytest

from qvg_engine.kernels.paged_attention.cost_model import Cost, CostModel, Sample, fit

POINTS = [(64, 4096), (64, 16384), (4096, 16384)]
WORKSPACE = Cost(fixed=0.08, per_pair=1.5e-8, per_token=3e-6)
FUSED = Cost(fixed=0.03, per_pair=4e-8, per_token=1e-7)
MODEL = CostModel({"workspace": WORKSPACE, "fused": FUSED})


def samples(cost: Cost) -> list[Sample]:
    return [Sample(queries, tokens, cost.ms(queries, tokens)) for queries, tokens in POINTS]


@pytest.mark.parametrize("cost", [WORKSPACE, FUSED, Cost(fixed=0.2, per_pair=1e-9, per_token=0)])
def test_exact_times_give_back_the_cost(cost: Cost) -> None:
    found = fit(samples(cost))
    for queries, tokens in [*POINTS, (1560, 130_000)]:
        assert found.ms(queries, tokens) == pytest.approx(cost.ms(queries, tokens), rel=1e-6)
    assert found.per_pair == pytest.approx(cost.per_pair, rel=1e-6)


def test_noise_makes_nothing_negative() -> None:
    # More tokens took less time: an exact solution would have a negative cost of a token.
    found = fit([Sample(64, 4096, 0.11), Sample(64, 16384, 0.10), Sample(4096, 16384, 1.0)])
    assert min(found.fixed, found.per_pair, found.per_token) >= 0
    assert found.ms(4096, 16384) == pytest.approx(1.0, rel=0.15)
    assert found.ms(64, 4096) == pytest.approx(0.1, rel=0.15)


def test_small_times_count_as_much_as_large_ones() -> None:
    """The error is relative: a large time does not drown what is known of a small one."""
    disturbed = [*samples(WORKSPACE), Sample(4096, 4096, 1.1 * WORKSPACE.ms(4096, 4096))]
    found = fit(disturbed)
    assert found.ms(64, 4096) == pytest.approx(WORKSPACE.ms(64, 4096), rel=0.05)


def test_fewer_queries_than_a_block_take_as_long() -> None:
    assert FUSED.ms(1, 5000) == FUSED.ms(64, 5000) < FUSED.ms(65, 5000)


def test_few_queries_take_fused_and_many_workspace() -> None:
    assert MODEL.choose(16, 100_000) == "fused"
    assert MODEL.choose(4680, 100_000) == "workspace"


def test_the_choice_is_the_smaller_time() -> None:
    for queries in (1, 64, 128, 500, 4680):
        for tokens in (1, 100, 441, 442, 10_000, 500_000):
            times = {name: cost.ms(queries, tokens) for name, cost in MODEL.costs.items()}
            assert times[MODEL.choose(queries, tokens)] == min(times.values())


def test_without_cached_tokens_there_is_nothing_to_choose() -> None:
    assert MODEL.choose(16, 0) == "workspace"


@pytest.mark.parametrize("queries", [256, 1560, 4680])
def test_the_choice_changes_at_the_crossover(queries: int) -> None:
    crossover = MODEL.crossover(queries)
    assert crossover is not None
    assert MODEL.choose(queries, crossover - 1) == "fused"
    assert MODEL.choose(queries, crossover) == "workspace"
    assert MODEL.describe(queries) == (
        f"fused below {crossover:,} cached tokens, workspace from there on"
    )


def test_where_one_is_always_faster_there_is_no_crossover() -> None:
    assert MODEL.crossover(64) is None
    assert MODEL.describe(64) == "fused for any number of cached tokens"
    equal = CostModel({"workspace": WORKSPACE, "fused": WORKSPACE})
    assert equal.crossover(64) is None
    assert equal.choose(64, 10) == "workspace"
