"""The scheduler's settings."""

import msgspec

from qvg_engine.errors import ConfigError


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many streams run, how much one step takes, and how fast waiting outweighs priority.

    `max_streams` bounds the streams that are admitted at the same time. `max_batch_tokens` bounds
    the tokens of one step; a gang that is larger runs alone. `aging_steps` is the number of steps
    of waiting that make up for one unit of priority: with 64, a stream of priority 1 that has
    waited 64 steps stands where a stream of priority 0 stands that has just come.

    Raises ConfigError naming field, value and range.
    """

    max_streams: int = 64
    max_batch_tokens: int = 65_536
    aging_steps: int = 64

    def __post_init__(self) -> None:
        _check_range("max_streams", self.max_streams, maximum=65_536)
        _check_range("max_batch_tokens", self.max_batch_tokens, maximum=2**31 - 1)
        _check_range("aging_steps", self.aging_steps, maximum=1_000_000)


def _check_range(name: str, value: int, *, maximum: int) -> None:
    if type(value) is not int or not 1 <= value <= maximum:
        raise ConfigError(f"{name} is {value!r}; give a whole number from 1 to {maximum:,}")
