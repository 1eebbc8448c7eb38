"""The console that commands print to."""

from rich.console import Console

_PLAIN_WIDTH = 160


def make_console() -> Console:
    """A console on stdout; where that is no terminal, its lines are 160 characters wide."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)
