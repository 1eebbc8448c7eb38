from typing import Any

import pytest

from qvg_engine.errors import ConfigError
from qvg_engine.quality.contenders.registry import CONTENDERS
from qvg_engine.quality.table.settings import TableSettings


def test_the_defaults_are_the_whole_table() -> None:
    settings = TableSettings()
    assert settings.contenders == tuple(CONTENDERS)
    assert settings.num_prompts * settings.num_seeds == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contenders": ()}, "contenders is ''"),
        ({"contenders": ("qvg", "qvg")}, "contenders is 'qvg, qvg'"),
        ({"contenders": ("qvg", "none")}, "unknown contender 'none'"),
        ({"contenders": ("q2",)}, "baseline is 'qvg': give one of q2"),
        ({"windows": ()}, "windows is ''"),
        ({"windows": ("none",)}, "unknown contender 'none'"),
        ({"clips": ("none",)}, "unknown contender 'none'"),
        ({"adherence": ("none",)}, "unknown contender 'none'"),
        ({"shown": ("none",)}, "unknown contender 'none'"),
        ({"centroids": (0,)}, "centroids is 0: give a whole number from 1 to 256"),
        ({"layers": ()}, "layers is ''"),
        ({"num_captures": 0}, "num_captures is 0"),
        ({"num_prompts": 361}, "num_prompts is 361: give a whole number from 1 to 360"),
        ({"attend_every": 0}, "attend_every is 0"),
        ({"adherence_frames": 95}, "adherence_frames is 95"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_mistakes_name_field_value_and_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableSettings(**fields)
