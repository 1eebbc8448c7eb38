"""What other threads ask of an engine, until its next step reads it."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from qvg_engine.errors import RequestError
from qvg_engine.output import VideoOutput

Act = Callable[[], list[VideoOutput]]


class Mailbox:
    """Letters in order of arrival, and the requests that are unfinished. Thread-safe."""

    def __init__(self) -> None:
        self._letters: deque[Act] = deque()
        self._unfinished: set[str] = set()
        self._lock = threading.Lock()

    @property
    def has_unfinished(self) -> bool:
        """Whether a request was added and not ended."""
        with self._lock:
            return bool(self._unfinished)

    def add(self, request_id: str, act: Act) -> None:
        """Post the first letter of a request; `RequestError` if its name is in use."""
        with self._lock:
            if request_id in self._unfinished:
                raise RequestError(f"request_id {request_id!r} is in use: give another one")
            self._unfinished.add(request_id)
            self._letters.append(act)

    def post(self, request_id: str, act: Act) -> bool:
        """Post a letter about a request; False, and nothing posted, if it is not unfinished."""
        with self._lock:
            if request_id not in self._unfinished:
                return False
            self._letters.append(act)
        return True

    def end(self, request_id: str) -> None:
        """The request is finished: its name is free."""
        with self._lock:
            self._unfinished.discard(request_id)

    def read(self) -> Iterator[Act]:
        """Every letter, also those that arrive meanwhile; each leaves the box."""
        while True:
            with self._lock:
                if not self._letters:
                    return
                act = self._letters.popleft()
            yield act
