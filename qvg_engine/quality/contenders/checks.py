"""Checks of the settings of contenders."""

from qvg_engine.errors import ConfigError


def check_range(name: str, value: object, low: int, high: int) -> None:
    """`ConfigError` naming field, value and range unless `value` is a whole number in it."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: give a whole number from {low} to {high:,}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """`ConfigError` naming field, value and choices unless `value` is one of them."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}: give one of {', '.join(choices)}")
