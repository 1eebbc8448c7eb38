"""Workers agree on everything that decides how a training goes on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from qvg_engine.models.pocket.workers import Workers

COUNT = 2
WORK = """
import sys
import torch
from qvg_engine.models.pocket.workers import Workers

workers = Workers.join()
small = torch.full((3,), float(workers.rank), dtype=torch.bfloat16)
large = torch.arange(4.0).view(2, 2) * (workers.rank + 1)
workers.average([small, large])
agreed = workers.agree(0.25 if workers.is_first else 0.5)
torch.save([small, large, torch.tensor(agreed)], f"{sys.argv[1]}/{workers.rank}.pt")
workers.wait()
torch.distributed.destroy_process_group()
"""


def test_workers_average_and_agree(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", WORK, str(tmp_path)],
            env=os.environ | meeting | {"RANK": str(rank)},
        )
        for rank in range(COUNT)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * COUNT
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
