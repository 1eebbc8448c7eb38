import numpy as np
import pytest
import torch

from qvg_engine.kernels.page_runs import PageRuns


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def as_runs(entries: list[tuple[int, int, int, int]]) -> PageRuns:
    """Runs of (page, first token, begin, end)."""
    return PageRuns(*np.array(entries, dtype=np.int64).reshape(-1, 4).T.copy())
