from typing import Any

import msgspec
import pytest

from qvg_engine.errors import ConfigError
from qvg_engine.scheduler.config import SchedulerConfig


@pytest.mark.parametrize("field", ["max_streams", "max_batch_tokens", "aging_steps"])
@pytest.mark.parametrize("value", [0, -1, 2**31, 1.5, True, "8"])
def test_error_names_field_value_and_range(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is {value!r}; give a whole number from 1 to"):
        SchedulerConfig(**{field: value})


def test_unknown_field_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError, match="max_stream"):
        msgspec.convert({"max_stream": 3}, SchedulerConfig)


def test_is_frozen() -> None:
    config = SchedulerConfig()
    with pytest.raises(AttributeError):
        config.max_streams = 3  # type: ignore[misc]
