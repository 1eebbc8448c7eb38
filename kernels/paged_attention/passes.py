"""What one pass of a batch attends to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qvg_engine.kernels.paged_attention.segments import Segment
from qvg_engine.kernels.paged_attention.transform import IdentityTransform, ReadTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPass:
    """Rows [start, stop) of a batch's queries, and all that they see.

    Args:
        segments: runs of tokens in pages or dense tensors, in any order, of any length, also none.
        transform: applied to queries, keys, values and output.
        positions: the queries' token numbers [stop - start]; needed with a transform.
    """

    start: int
    stop: int
    segments: Sequence[Segment]
    transform: ReadTransform = field(default_factory=IdentityTransform)
    positions: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        assert 0 <= self.start <= self.stop, (self.start, self.stop)
        if self.positions is None:
            assert isinstance(self.transform, IdentityTransform), (
                "a transform needs query_positions"
            )
        else:
            assert self.positions.shape == (self.num_queries,), self.positions.shape

    @property
    def num_queries(self) -> int:
        return self.stop - self.start

    @property
    def query_positions(self) -> NDArray[np.int64]:
        """The token numbers, 0 where there are none to know."""
        return np.zeros(self.num_queries, np.int64) if self.positions is None else self.positions

    def alone(self) -> "AttentionPass":
        """This pass as the only one of a batch."""
        return replace(self, start=0, stop=self.num_queries)


def close_up(passes: Sequence[AttentionPass]) -> list[AttentionPass]:
    """Some passes of a batch as a batch of their own, in the same order."""
    ends = np.cumsum([part.num_queries for part in passes]).tolist()
    return [
        replace(part, start=end - part.num_queries, stop=end)
        for part, end in zip(passes, ends, strict=True)
    ]


def check_passes(passes: Sequence[AttentionPass], num_queries: int) -> None:
    """Assert that the passes take all queries, in order."""
    ends = [0, *(part.stop for part in passes)]
    assert ends[:-1] == [part.start for part in passes], ends
    assert ends[-1] == num_queries, (ends, num_queries)
