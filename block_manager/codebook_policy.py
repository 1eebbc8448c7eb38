"""When a codebook is fitted, kept or fitted anew: settings, and the decision for one span."""

import enum
from typing import Any

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from qvg_engine.block_manager.codebook_history import CodebookHistory
from qvg_engine.errors import ConfigError

_WINDOWED_SPANS, _FULL_HISTORY_SPANS = 1, 8


class CodebookAction(enum.IntEnum):
    """What a span does with its codebook."""

    REUSE = 0
    """Encode with the codebook there is."""
    REFIT = 1
    """Fit a new one, starting from the one there is."""
    FIT = 2
    """Fit one from nothing."""


class CodebookPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long a stream keeps a codebook.

    * `max_live`: codebooks that one stream may have at a time, per book. With one, it keeps its
      first for ever.
    * `fit_tokens`: a codebook is fitted to the first span that it encodes, and to so many of the
      tokens before it, at most, as they are read back: pages evenly spread over what is kept.
    * `min_spans`: spans that a codebook encodes at least before it is fitted anew; None: 1 for
      streams with a window, 8 for those that keep everything and so can never use a slot again.
    * `refit_residual`: a codebook is fitted anew once it leaves this many times the share of
      energy that it left of the span it was fitted on.
    * `refit_drift`: or once the spread of ids over centroids has moved this far, 0 to 1 (total
      variation), from that of the span it was fitted on.
    * `refit_unused`: or once less than this share of its centroids is in use.
    * `kmeans_iterations`: how often centroids move at most when a codebook is fitted.
    * `first_spans`: spans after which the first codebook, which has seen the stream's first span
      only, is fitted anew in any case; 0 for never.

    Raises `ConfigError` naming field, value and range.
    """

    max_live: int = 2
    fit_tokens: int = 8192
    min_spans: int | None = None
    refit_residual: float = 1.1
    refit_drift: float = 0.7
    refit_unused: float = 0.25
    first_spans: int = 0
    kmeans_iterations: int = 8

    def __post_init__(self) -> None:
        _check("max_live", self.max_live, 1, 16)
        _check("fit_tokens", self.fit_tokens, 0, 2**31 - 1)
        if self.min_spans is not None:
            _check("min_spans", self.min_spans, 1, 2**31 - 1)
        _check("refit_residual", self.refit_residual, 1.0, 1e6)
        _check("refit_drift", self.refit_drift, 0.0, 1.0)
        _check("refit_unused", self.refit_unused, 0.0, 1.0)
        _check("first_spans", self.first_spans, 0, 2**31 - 1)
        _check("kmeans_iterations", self.kmeans_iterations, 1, 1000)

    def for_streams(self, *, windowed: bool) -> "CodebookPolicy":
        """This policy with what it leaves to the kind of stream filled in."""
        if self.min_spans is not None:
            return self
        return msgspec.structs.replace(
            self, min_spans=_WINDOWED_SPANS if windowed else _FULL_HISTORY_SPANS
        )


class SpanPlan(msgspec.Struct, frozen=True, eq=False):
    """What one span's commit does in every book.

    `actions` int8 [books] are `CodebookAction`s, `slots` int32 [books] the slots that its pages
    will refer to, `warm_from` int32 [books] the slots that a REFIT starts from (else -1).
    """

    actions: NDArray[np.int8]
    slots: NDArray[np.int32]
    warm_from: NDArray[np.int32]


def plan_span(
    policy: CodebookPolicy,
    history: CodebookHistory,
    *,
    own_slots: NDArray[np.int32],
    current: NDArray[np.int32],
    ref_counts: NDArray[np.int32],
) -> SpanPlan:
    """Decide for every book, from the figures of the spans before.

    Args:
        policy: the thresholds.
        history: what is known of each codebook.
        own_slots: the slots that the stream reserved, int32 [at least 1].
        current: the slot of the book's codebook in use, int32 [books]; -1 before the first span.
        ref_counts: pages that refer to each codebook, int32 [books, slots].

    Without a slot that no page refers to, a book goes on with the codebook that it has.
    """
    assert own_slots.size >= 1, "a stream needs one codebook slot at least"
    num_books = current.size
    plan = SpanPlan(
        np.empty(num_books, np.int8), np.empty(num_books, np.int32), np.empty(num_books, np.int32)
    )
    _decide(
        own_slots,
        current,
        ref_counts,
        history.ratio_at_fit,
        history.ratio,
        history.drift,
        history.used,
        history.num_spans,
        history.is_first,
        policy.refit_residual,
        policy.refit_drift,
        policy.refit_unused,
        policy.first_spans,
        policy.min_spans or _WINDOWED_SPANS,
        plan.actions,
        plan.slots,
        plan.warm_from,
    )
    return plan


@njit(cache=True)
def _decide(
    own_slots: Any,
    current: Any,
    ref_counts: Any,
    ratio_at_fit: Any,
    ratio: Any,
    drift: Any,
    used: Any,
    num_spans: Any,
    is_first: Any,
    refit_residual: float,
    refit_drift: float,
    refit_unused: float,
    first_spans: int,
    min_spans: int,
    actions: Any,
    slots: Any,
    warm_from: Any,
) -> None:
    for book in range(current.size):
        now = current[book]
        free = -1
        for slot in own_slots:
            if slot != now and ref_counts[book, slot] == 0:
                free = slot
                break
        actions[book], slots[book], warm_from[book] = 0, now, -1
        if now < 0:
            actions[book], slots[book] = 2, free
        elif free >= 0 and num_spans[book, now] >= min_spans:
            worn = ratio[book, now] > refit_residual * ratio_at_fit[book, now]
            moved = drift[book, now] > refit_drift
            idle = used[book, now] < refit_unused
            due = first_spans > 0 and is_first[book, now] and num_spans[book, now] >= first_spans
            if worn or moved or idle or due:
                actions[book], slots[book], warm_from[book] = 1, free, now


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: give a number from {low:g} to {high:g}")
