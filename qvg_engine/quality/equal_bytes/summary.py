"""Comparing the videos of two arms, and the answer that follows."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import msgspec

from qvg_engine.quality.equal_bytes.budgets import Budget
from qvg_engine.quality.equal_bytes.looks import KINDS, Kind, Look, kind_of
from qvg_engine.quality.equal_bytes.settings import EXACT, EqualBytesSettings
from qvg_engine.quality.equal_bytes.videos import Arm, BatchFigures, Study, VideoFigures
from qvg_engine.quality.table.bootstrap import Interval, difference_interval, mean_interval
from qvg_engine.version import __version__

LEAST_PAIRS = 6
"""Pairs of videos below which nothing is answered.

With fewer, even differences that all have one sign are no evidence at 95 %.
"""

Verdict = Literal["shown", "not shown", "the opposite is shown", "too few looks", "unequal bytes"]
Measure = Callable[[VideoFigures], float | None]
"""A figure of a video; None where it has none."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One arm less another, paired by prompt and seed.

    `revisited_db` is of the PSNR of revisited ground, `gain_db` of that less other ground's, both
    over the looks that are chosen and `pairs` of videos that both have such looks; `adherence` is
    of all videos. Without pairs there is no interval.
    """

    name: str
    ours: str
    theirs: str
    pairs: int
    revisited_db: Interval | None
    gain_db: Interval | None
    adherence: Interval | None


class ArmRow(msgspec.Struct, frozen=True, kw_only=True):
    """The videos of one arm, or real clips, and all looks at them; bytes are a stream's."""

    name: str
    num_videos: int
    page_bytes: float
    codebook_bytes: float
    kv_ratio: float
    num_looks: int
    lap: float | None
    revisited_db: Interval | None
    gain_db: Interval | None
    adherence: Interval | None

    @property
    def num_bytes(self) -> float:
        """Bytes of pages, codebooks and refinements."""
        return self.page_bytes + self.codebook_bytes


class BudgetRow(msgspec.Struct, frozen=True, kw_only=True):
    """One budget of bytes.

    `kinds` counts the looks of its two arms by what the windows see of their ground. The first of
    `differences` is the budget's answer, the others tell window and format apart; all are over the
    looks that tell the windows apart, but for the last, which is over all looks.
    """

    budget: Budget
    kinds: dict[Kind, int]
    differences: tuple[Difference, ...]
    verdict: Verdict


class EqualBytesTable(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known; `shown` is whether the claim may be made."""

    version: str
    weights: str
    settings: EqualBytesSettings
    arms: tuple[ArmRow, ...]
    budgets: tuple[BudgetRow, ...]
    shown: bool


def summarise(study: Study) -> EqualBytesTable:
    """The table, of whatever videos there are."""
    rows = tuple(_arm_row(str(arm), study.found(arm), study.settings.seed) for arm in study.arms)
    real = _arm_row("real clips", study.found(None), study.settings.seed)
    by_name = {row.name: row for row in rows}
    budgets = tuple(_budget_row(study, budget, by_name) for budget in study.budgets)
    return EqualBytesTable(
        version=__version__,
        weights=study.weights,
        settings=study.settings,
        arms=(*rows, real),
        budgets=budgets,
        shown=all(row.verdict == "shown" for row in budgets),
    )


def answer(
    difference: Difference, *, num_bytes: float, limit: float, least_pairs: int = LEAST_PAIRS
) -> Verdict:
    """What a budget shows: the claim, only if both intervals of `difference` lie above 0.

    Nothing where the longer window takes more than the `limit` of the shorter one's bytes.
    """
    if num_bytes > limit:
        return "unequal bytes"
    revisited, gain = difference.revisited_db, difference.gain_db
    if difference.pairs < least_pairs or revisited is None or gain is None:
        return "too few looks"
    if revisited.low > 0 and gain.low > 0:
        return "shown"
    return "the opposite is shown" if revisited.high < 0 and gain.high < 0 else "not shown"


def paired(
    ours: Sequence[VideoFigures],
    theirs: Sequence[VideoFigures],
    measure: Measure,
    *,
    seed: int = 0,
) -> tuple[int, Interval | None]:
    """Pairs of videos of one prompt and seed that both have a figure, and their mean difference."""
    baseline = {(video.prompt, video.seed): measure(video) for video in theirs}
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for video in ours:
        here, there = measure(video), baseline.get((video.prompt, video.seed))
        if here is not None and there is not None:
            group = groups.setdefault(video.prompt, ([], []))
            group[0].append(here)
            group[1].append(there)
    if not groups:
        return 0, None
    left, right = zip(*groups.values(), strict=True)
    return sum(map(len, left)), difference_interval(left, right, seed=seed)


def compare(
    name: str, study: Study, ours: Arm, theirs: Arm, chosen: Callable[[Look], bool]
) -> Difference:
    """One arm less another, over the looks that are chosen."""
    videos, seed = (study.videos(ours), study.videos(theirs)), study.settings.seed
    pairs, revisited = paired(*videos, _mean_look(lambda look: look.db, chosen), seed=seed)
    _, gain = paired(*videos, _mean_look(lambda look: look.gain_db, chosen), seed=seed)
    _, adherence = paired(*videos, lambda video: video.adherence, seed=seed)
    return Difference(
        name=name,
        ours=str(ours),
        theirs=str(theirs),
        pairs=pairs,
        revisited_db=revisited,
        gain_db=gain,
        adherence=adherence,
    )


def _budget_row(study: Study, budget: Budget, rows: dict[str, ArmRow]) -> BudgetRow:
    name, short, long = study.settings.kv_format, budget.short, budget.long
    exact_short, exact_long = Arm(EXACT, short), Arm(EXACT, long)
    coded_short, coded_long = Arm(name, short), Arm(name, long)

    def kind(look: Look) -> Kind:
        return kind_of(look, short=short, long=long)

    def told_apart(look: Look) -> bool:
        return kind(look) == "told apart"

    comparisons = (
        ("equal bytes", coded_long, exact_short),
        (f"the window alone, {EXACT}", exact_long, exact_short),
        (f"the window alone, {name}", coded_long, coded_short),
        ("the format alone, long window", coded_long, exact_long),
        ("the format alone, short window", coded_short, exact_short),
    )
    differences = tuple(
        compare(title, study, ours, theirs, told_apart) for title, ours, theirs in comparisons
    )
    everything = compare("equal bytes, all looks", study, coded_long, exact_short, _any_look)
    videos = (*study.videos(coded_long), *study.videos(exact_short))
    counted = Counter(kind(look) for video in videos for look in video.looks)
    verdict = answer(
        differences[0],
        num_bytes=rows[str(coded_long)].num_bytes,
        limit=rows[str(exact_short)].num_bytes,
    )
    return BudgetRow(
        budget=budget,
        kinds={kind: counted[kind] for kind in KINDS},
        differences=(*differences, everything),
        verdict=verdict,
    )


def _arm_row(name: str, found: Sequence[BatchFigures], seed: int) -> ArmRow:
    videos = [video for figures in found for video in figures.videos]
    laps = [look.lap for video in videos for look in video.looks]

    def interval(measure: Measure) -> Interval | None:
        by_prompt: dict[str, list[float]] = {}
        for video in videos:
            value = measure(video)
            if value is not None:
                by_prompt.setdefault(video.prompt, []).append(value)
        return mean_interval(list(by_prompt.values()), seed=seed) if by_prompt else None

    return ArmRow(
        name=name,
        num_videos=len(videos),
        page_bytes=max((figures.page_bytes for figures in found), default=0),
        codebook_bytes=max((figures.codebook_bytes for figures in found), default=0),
        kv_ratio=min((figures.kv_ratio for figures in found), default=0),
        num_looks=len(laps),
        lap=fmean(laps) if laps else None,
        revisited_db=interval(_mean_look(lambda look: look.db, _any_look)),
        gain_db=interval(_mean_look(lambda look: look.gain_db, _any_look)),
        adherence=interval(lambda video: video.adherence),
    )


def _any_look(look: Look) -> bool:
    return True


def _mean_look(figure: Callable[[Look], float], chosen: Callable[[Look], bool]) -> Measure:
    """The mean of a figure over the looks of a video that are chosen."""

    def measure(video: VideoFigures) -> float | None:
        values = [figure(look) for look in video.looks if chosen(look)]
        return fmean(values) if values else None

    return measure
