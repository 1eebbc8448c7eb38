"""Checks of settings, with errors that name field, value and what would do."""

from qvg_engine.errors import ConfigError


def check_range(name: str, value: object, low: int, high: int) -> None:
    """`ConfigError` unless `value` is a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: give a whole number from {low:,} to {high:,}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """`ConfigError` unless `value` is one of `choices`, and of their type: 1 is not True."""
    if type(value) is not type(choices[0]) or value not in choices:
        raise ConfigError(f"{name} is {value!r}: give one of {', '.join(map(str, choices))}")


def check_distinct(name: str, values: tuple[object, ...]) -> None:
    """`ConfigError` for no values, or one that is there twice."""
    if not values or len(set(values)) != len(values):
        listed = ", ".join(map(str, values))
        raise ConfigError(f"{name} is {listed!r}: give at least one, and each of them once")
