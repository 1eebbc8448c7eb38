"""The line of streams that wait to be admitted."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from qvg_engine.scheduler.stream import Stream

_place = attrgetter("admission_place")


class WaitingLine:
    """Waiting streams in the order of admission.

    A place depends on nothing but the stream, so a stream that comes back (its admission was
    undone) stands where it stood.
    """

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams)

    def insert(self, stream: Stream) -> None:
        """Put `stream` at its place."""
        insort(self._streams, stream, key=_place)

    def remove(self, stream: Stream) -> None:
        """Take `stream` out; it must be in the line."""
        index = bisect_left(self._streams, stream.admission_place, key=_place)
        assert self._streams[index] is stream, f"{stream.request_id!r} does not wait"
        del self._streams[index]

    def remove_first(self, count: int) -> None:
        """Take out the first `count` streams."""
        assert 0 <= count <= len(self._streams), f"{count} of {len(self._streams)}"
        del self._streams[:count]

    def check_integrity(self) -> None:
        """Assert that the line is in order and that nobody in it holds anything."""
        places = [stream.admission_place for stream in self._streams]
        assert places == sorted(places), f"the waiting line is out of order: {places}"
        for stream in self._streams:
            assert not stream.is_running, f"{stream.request_id!r} waits and has branches"
