"""Workers agree on everything that decides how a training goes on."""

import socket
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from qvg_engine.models.pocket.workers import Workers

COUNT = 2


def work(rank: int, port: int, folder: str) -> None:
    """What each process of the test does."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (
            ("RANK", rank),
            ("WORLD_SIZE", COUNT),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", port),
        ):
            environment.setenv(name, str(value))
        workers = Workers.join()
    small = torch.full((3,), float(rank), dtype=torch.bfloat16)
    large = torch.arange(4.0).view(2, 2) * (rank + 1)
    workers.average([small, large])
    agreed = workers.agree(0.25 if rank == 0 else 0.5)
    torch.save([small, large, torch.tensor(agreed)], Path(folder) / f"{rank}.pt")
    workers.wait()
    torch.distributed.destroy_process_group()


def test_workers_average_and_agree(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, str(tmp_path)), nprocs=COUNT)
    for rank in range(COUNT):
        small, large, agreed = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(small, torch.full((3,), 0.5, dtype=torch.bfloat16))
        assert torch.equal(large, torch.arange(4.0).view(2, 2) * 1.5)
        assert float(agreed) == 0.25


def test_one_process_is_alone_without_a_launcher() -> None:
    workers = Workers.join()
    values = torch.ones(2)
    workers.average([values])
    assert workers.is_first
    assert workers.agree(0.75) == 0.75
    assert torch.equal(values, torch.ones(2))
