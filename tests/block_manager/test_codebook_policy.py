"""When a codebook is fitted anew: every reason by itself, and never without a free slot."""

import numpy as np
import pytest
from numpy.typing import NDArray

from qvg_engine.block_manager.codebook_history import OCCUPANCY_DECAY, USED_SHARE, CodebookHistory
from qvg_engine.block_manager.codebook_policy import (
    CodebookAction,
    CodebookPolicy,
    SpanPlan,
    plan_span,
)
from qvg_engine.errors import ConfigError

BOOKS, SLOTS, GROUPS, CENTROIDS = 3, 5, 2, 4
OWN = np.asarray([1, 3], dtype=np.int32)
EVEN = np.full((BOOKS, GROUPS, CENTROIDS), 10, dtype=np.int32)
REFIT, REUSE, FIT = CodebookAction.REFIT, CodebookAction.REUSE, CodebookAction.FIT


@pytest.fixture
def history() -> CodebookHistory:
    return CodebookHistory(
        num_books=BOOKS, num_slots=SLOTS, num_groups=GROUPS, num_centroids=CENTROIDS
    )


def record(
    history: CodebookHistory,
    plan: SpanPlan,
    ratio: float,
    counts: NDArray[np.int32] = EVEN,
    live: int = CENTROIDS,
) -> None:
    energy = np.full(BOOKS, 8.0, dtype=np.float32)
    history.record(
        slots=plan.slots,
        actions=plan.actions,
        energy=energy,
        residual=(ratio * energy).astype(np.float32),
        counts=counts,
        num_centroids=np.full(BOOKS, live, dtype=np.int32),
    )


def decide(
    history: CodebookHistory,
    current: NDArray[np.int32] | None,
    refs: NDArray[np.int32] | None = None,
    **settings: float,
) -> SpanPlan:
    return plan_span(
        CodebookPolicy(**settings),  # type: ignore[arg-type]
        history,
        own_slots=OWN,
        current=np.full(BOOKS, -1, dtype=np.int32) if current is None else current,
        ref_counts=np.zeros((BOOKS, SLOTS), dtype=np.int32) if refs is None else refs,
    )


def test_the_first_span_fits_and_the_next_ones_reuse(history: CodebookHistory) -> None:
    first = decide(history, None)
    assert (first.actions == FIT).all()
    assert (first.slots == 1).all()
    record(history, first, 0.1)
    for _ in range(5):
        plan = decide(history, first.slots)
        assert (plan.actions == REUSE).all()
        assert np.array_equal(plan.slots, first.slots)
        record(history, plan, 0.109)
    assert (history.num_spans[:, 1] == 6).all()


def test_a_codebook_that_explains_less_is_fitted_anew(history: CodebookHistory) -> None:
    first = decide(history, None)
    record(history, first, 0.1)
    record(history, decide(history, first.slots), 0.14)
    plan = decide(history, first.slots)
    assert (plan.actions == REFIT).all()
    assert (plan.slots == 3).all()
    assert (plan.warm_from == 1).all()
    assert (decide(history, first.slots, refit_residual=1.5).actions == REUSE).all()


def test_a_codebook_serves_some_spans_first(history: CodebookHistory) -> None:
    first = decide(history, None)
    record(history, first, 0.1)
    for served in range(1, 7):
        actions = decide(history, first.slots, min_spans=4).actions
        assert (actions == (REFIT if served >= 4 else REUSE)).all()
        record(history, decide(history, first.slots, refit_residual=100), 0.5)


def test_streams_that_keep_everything_wait_longer() -> None:
    policy = CodebookPolicy()
    assert policy.for_streams(windowed=True).min_spans == 1
    assert policy.for_streams(windowed=False).min_spans == 8
    chosen = CodebookPolicy(min_spans=3)
    assert chosen.for_streams(windowed=False) == chosen.for_streams(windowed=True) == chosen


def test_no_free_slot_means_reuse(history: CodebookHistory) -> None:
    first = decide(history, None)
    record(history, first, 0.1)
    record(history, decide(history, first.slots), 0.9)
    refs = np.zeros((BOOKS, SLOTS), dtype=np.int32)
    refs[0, 3] = 7
    plan = decide(history, first.slots, refs)
    assert plan.actions.tolist() == [REUSE, REFIT, REFIT]
    assert plan.slots.tolist() == [1, 3, 3]
    assert plan.warm_from.tolist() == [-1, 1, 1]


def test_ids_that_moved_are_a_reason(history: CodebookHistory) -> None:
    first = decide(history, None)
    record(history, first, 0.1)
    counts = np.zeros_like(EVEN)
    counts[..., 0] = 40
    record(history, decide(history, first.slots), 0.1, counts)
    assert history.drift[:, 1] == pytest.approx(0.75)
    assert (decide(history, first.slots, refit_drift=0.7).actions == REFIT).all()
    assert (decide(history, first.slots, refit_drift=0.8).actions == REUSE).all()


def test_centroids_that_nobody_takes_are_a_reason(history: CodebookHistory) -> None:
    first = decide(history, None)
    counts = np.zeros_like(EVEN)
    counts[..., 2] = 40
    record(history, first, 0.1, counts)
    assert history.used[:, 1] == pytest.approx(0.25)
    assert (decide(history, first.slots, refit_unused=0.3).actions == REFIT).all()
    assert (decide(history, first.slots, refit_unused=0.25).actions == REUSE).all()


def test_the_first_codebook_may_have_an_end(history: CodebookHistory) -> None:
    plan = decide(history, None, first_spans=3)
    for expected in (REUSE, REUSE, REFIT):
        record(history, plan, 0.1)
        plan = decide(history, plan.slots, first_spans=3)
        assert (plan.actions == expected).all()
    for _ in range(5):
        record(history, plan, 0.1)
        plan = decide(history, plan.slots, first_spans=3)
        assert (plan.actions == REUSE).all()


def test_occupancy_and_drift_equal_plain_arithmetic(history: CodebookHistory) -> None:
    rng = np.random.default_rng(0)
    plan = decide(history, None)
    live = CENTROIDS - 1
    spans = rng.integers(1, 50, (6, *EVEN.shape)).astype(np.int32)
    spans[..., live:] = 0
    occupancy = at_fit = spans[0] / spans[0].sum(-1, keepdims=True)
    record(history, plan, 0.1, spans[0], live)
    for counts in spans[1:]:
        plan = decide(history, plan.slots, refit_drift=1.0)
        record(history, plan, 0.1, counts, live)
        share = counts / counts.sum(-1, keepdims=True)
        occupancy = OCCUPANCY_DECAY * occupancy + (1 - OCCUPANCY_DECAY) * share
        drift = 0.5 * np.abs(share - at_fit).sum(-1).mean(-1)
        np.testing.assert_allclose(history.drift[:, 1], drift, rtol=1e-5)
        used = (occupancy[..., :live] >= USED_SHARE / live).mean((1, 2))
        np.testing.assert_allclose(history.used[:, 1], used, rtol=1e-5)


def test_a_span_of_zeros_is_explained(history: CodebookHistory) -> None:
    plan = decide(history, None)
    zero = np.zeros(BOOKS, dtype=np.float32)
    history.record(
        slots=plan.slots,
        actions=plan.actions,
        energy=zero,
        residual=zero,
        counts=np.zeros_like(EVEN),
        num_centroids=np.zeros(BOOKS, dtype=np.int32),
    )
    assert (history.ratio == 0).all()
    assert np.isfinite(history.drift).all()
    assert (history.used[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_live", 0), ("refit_residual", 0.9), ("refit_drift", 1.5), ("refit_unused", -0.1)],
)
def test_settings_are_checked(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        CodebookPolicy(**{field: value})  # type: ignore[arg-type]


def test_a_book_with_fewer_stages_than_others_is_judged_by_its_own(
    history: CodebookHistory,
) -> None:
    """Counts have room for the most stages of any book; a book without them leaves zeros."""
    first = EVEN.copy()
    first[1, 1] = first[2] = 0
    plan = decide(history, None)
    record(history, plan, 0.1, first)
    slot = int(plan.slots[0])
    assert history.used[:, slot].tolist() == [1, 1, 1]
    moved = first.copy()
    moved[:, :, :2] *= 3
    reuse = decide(history, plan.slots)
    assert reuse.actions.tolist() == [REUSE] * BOOKS
    record(history, reuse, 0.1, moved)
    assert history.drift[:2, slot].tolist() == pytest.approx([0.25, 0.25])
    assert history.drift[2, slot] == 0, "without stages nothing moves"
