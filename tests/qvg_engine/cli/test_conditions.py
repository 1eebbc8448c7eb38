"""Conditions of a model from the command line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from qvg_engine.cli.conditions import read_conditions
from qvg_engine.errors import QvgError
from qvg_engine.models.longcat.conditions import LongCatConditions
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.family import WanConditions
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from tests.qvg_engine.cli.test_start_frames import write_image


def family(conditions_type: type[msgspec.Struct]) -> Any:
    return SimpleNamespace(
        name="some",
        conditions_type=conditions_type,
        codec=SimpleNamespace(spatial_factor=8),
        settings=RolloutSettings(latent_shape=(1, 2, 3)),
    )


def test_fields_from_text_and_from_a_file(tmp_path: Path) -> None:
    text = '{"pose": "w-3", "guidance_scale": 2.5, "actions": [0, 9, 9, 9]}'
    found = read_conditions(text, family(WorldPlayConditions))
    assert isinstance(found, WorldPlayConditions)
    assert (found.pose, found.guidance_scale, found.actions) == ("w-3", 2.5, (0, 9, 9, 9))
    path = tmp_path / "walk.json"
    path.write_text('{"schedule": "distilled", "num_steps": 8}')
    distilled = read_conditions(str(path), family(LongCatConditions))
    assert isinstance(distilled, LongCatConditions)
    assert (distilled.schedule, distilled.num_steps) == ("distilled", 8)
    assert read_conditions("{}", family(WanConditions)) == WanConditions()


def test_a_picture_is_brought_to_size(tmp_path: Path) -> None:
    pixels = np.full((40, 60, 3), 200, np.uint8)
    write_image(tmp_path / "photo.png", pixels)
    text = f'{{"image": "{tmp_path / "photo.png"}"}}'
    found: Any = read_conditions(text, family(WorldPlayConditions))
    assert found.image.shape == (16, 24, 3)
    assert (found.image == 200).all()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (WorldPlayConditions, "w-3", "no JSON object"),
        (WorldPlayConditions, "[1]", "no JSON object"),
        (WorldPlayConditions, '{"poses": "w-3"}', "does not have poses; it has pose, cameras"),
        (WanConditions, '{"pose": "w-3"}', "does not have pose; it has none"),
        (WorldPlayConditions, '{"guidance_scale": 0.5}', "guidance_scale is 0.5: give 1 to 100"),
        (WorldPlayConditions, '{"pose": 3}', "Expected `str | null`, got `int`"),
        (WorldPlayConditions, '{"image_embeds": [[1.0]]}', "cannot be given here"),
        (WorldPlayConditions, '{"image": "nowhere.png"}', "nowhere.png"),
        (WorldPlayConditions, "nowhere.json", "nowhere.json: No such file"),
    ],
)
def test_mistakes_are_one_line(kind: Any, text: str, words: str) -> None:
    with pytest.raises(QvgError, match=words) as caught:
        read_conditions(text, family(kind))
    assert "\n" not in str(caught.value)
