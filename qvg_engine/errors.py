"""The exceptions that qvg_engine raises on purpose.

    QvgError
    ├── ConfigError       (ValueError)  a setting of the engine is wrong
    ├── RequestError      (ValueError)  a request is wrong
    │   └── CapacityError               a request that can never fit in this engine
    ├── CheckpointError   (ValueError)  weights that are corrupt, truncated or of another model
    ├── NonFiniteError    (ValueError)  a tensor that must be finite holds NaN or infinity
    ├── OutputError       (OSError)     a video that cannot be written
    ├── OutOfPagesError   (MemoryError) the page pool or a reservation is used up
    ├── OutOfCodebooksError (MemoryError) the codebook slots are used up
    ├── StreamError                     one stream failed; the others go on
    └── EngineDeadError                 the engine cannot go on

A caller's mistake is a `QvgError` whose message is one line: what is wrong, the value that was
given, what to do. A failed `assert` is a mistake of ours.
"""


class QvgError(Exception):
    """Base of every exception that qvg_engine raises on purpose."""


class ConfigError(QvgError, ValueError):
    """A setting of the engine is wrong; the message names field, value and range."""


class RequestError(QvgError, ValueError):
    """A request is wrong; the message names field, value and range."""


class CapacityError(RequestError):
    """A request needs more than this engine has; the message says what would fit."""


class CheckpointError(QvgError, ValueError):
    """Weights are corrupt, truncated, or belong to another model."""


class NonFiniteError(QvgError, ValueError):
    """A tensor that must be finite holds NaN or infinity; the message names the tensor."""


class OutputError(QvgError, OSError):
    """A video file cannot be written."""


class OutOfPagesError(QvgError, MemoryError):
    """The page pool, or the reservation of a stream, is used up."""


class OutOfCodebooksError(QvgError, MemoryError):
    """The codebook slots, or those of a stream, are used up."""


class StreamError(QvgError):
    """One stream failed; the engine and its other streams go on."""


class EngineDeadError(QvgError):
    """The engine cannot go on, and holds nothing any more."""


def one_line(error: BaseException) -> str:
    """The kind of an error and what it says, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
