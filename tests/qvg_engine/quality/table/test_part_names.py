from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from qvg_engine.block_manager.format import FORMATS
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.contenders.registry import CONTENDERS
from qvg_engine.quality.table.part_names import BATCH_CONTROL, DENSE_CONTROL, PartNames
from qvg_engine.quality.table.parts import Part
from qvg_engine.quality.table.settings import TableSettings

SETTINGS = TableSettings(contenders=("qvg", "q2", "bf16"), num_captures=2, num_prompts=3)
KINDS: dict[str, Callable[[PartNames], Part]] = {
    "capture": lambda names: names.capture(1),
    "errors": lambda names: names.errors("q2", 64, 1, 2),
    "times": lambda names: names.times("q2", 64),
    "window": lambda names: names.window("q2", 1),
    "clip": lambda names: names.clip("q2"),
    "adherence": lambda names: names.adherence("q2"),
}


def make(weights: str = "a", layers: tuple[int, ...] = (0, 2), **fields: Any) -> PartNames:
    settings = msgspec.structs.replace(SETTINGS, **fields)
    return PartNames(settings, weights=weights, layers=layers)


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_are_other_parts(kind: str) -> None:
    part = KINDS[kind]
    assert part(make()) == part(make())
    assert part(make()).name == part(make(weights="b")).name
    assert part(make()).key != part(make(weights="b")).key


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "capture"])
def test_another_definition_is_another_part(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = KINDS[kind](make())
    monkeypatch.setitem(CONTENDERS, "q2", FormatContender(page_format=FORMATS["q4"]))
    after = KINDS[kind](make())
    assert (before.name, before.key == after.key) == (after.name, False)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"seed": 1}, set(KINDS)),
        ({"capture_frames": 24}, {"capture", "errors", "times"}),
        ({"attend_every": 7}, {"errors"}),
        ({"num_prompts": 2}, {"window"}),
        ({"stream_frames": 24}, {"window"}),
        ({"num_clips": 2}, {"clip"}),
        ({"clip_frames": 24}, {"clip"}),
        ({"adherence_prompts": 2}, {"adherence"}),
        ({"judge_every": 3}, {"adherence"}),
        ({"num_captures": 1, "num_seeds": 2, "centroids": (8, 64)}, set()),
    ],
)
def test_parts_depend_on_what_they_are_of(fields: dict[str, Any], changed: set[str]) -> None:
    before, after = make(), make(**fields)
    found = set()
    for kind, part in KINDS.items():
        # The second capture is not there any more where only one is made.
        if kind in ("capture", "errors") and after.settings.num_captures < 2:
            continue
        if part(before) != part(after):
            found.add(kind)
    assert found == changed


def test_no_two_parts_share_a_name() -> None:
    names = make()
    parts = [names.errors(name, 64, *place) for name, *place in names.all_errors()]
    parts += [names.window(name, index) for name in SETTINGS.contenders for index in range(4)]
    parts += [names.clip(name) for name in (*names.clips, "bf16")]
    assert len({part.name for part in parts}) == len(parts) == 2 * 2 * 3 + 3 * 4 + 6


def test_videos_of_a_seed_differ_from_those_of_another() -> None:
    names = make()
    seeds = [seed for index in range(4) for seed in names.window_seeds(index)]
    assert len(set(seeds)) == 4 * 3


def test_what_is_compared_with_is_not_compared() -> None:
    assert make().compared == ["qvg", "q2"]
    assert make(windows=("bf16", "q2")).compared == ["q2"]
    assert make(clips=("bf16", "q1")).clips == [DENSE_CONTROL, BATCH_CONTROL, "q1"]


def test_scenes_are_those_of_the_prompts() -> None:
    names = make()
    assert [scene.prompt for scene in names.scenes(5)] == names.prompts(5)
    assert names.prompts(3) == names.prompts(5)[:3]
