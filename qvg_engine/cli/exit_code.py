"""The exit codes of the command line; 128 + n stands for signal n."""

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """What a process says of how it went."""

    DONE = 0
    USER_ERROR = 2
    INTERRUPTED = 128 + signal.SIGINT
