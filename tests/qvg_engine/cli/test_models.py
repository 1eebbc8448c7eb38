"""The command line with weights files that it cannot make videos from."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.network import WanNetwork

CommandLine = Callable[..., Any]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small causal Wan network."""
    config = WanConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, text_dim=8, freq_dim=16)
    path = tmp_path / "network.safetensors"
    save_file(WanNetwork(config).state_dict(), path)
    return path


def assert_refused(cli: CommandLine, model: Path, message: str) -> None:
    before = sorted(os.listdir())
    result = cli("generate", "a red circle", "--model", str(model), "--num-frames", "12")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.out == ""
    assert sorted(os.listdir()) == before


def test_a_missing_file(cli: CommandLine, tmp_path: Path) -> None:
    assert_refused(cli, tmp_path / "missing.safetensors", "nor weights")


def test_a_bare_network(cli: CommandLine, network: Path) -> None:
    assert_refused(cli, network, "is a bare network")


def test_truncated_weights(cli: CommandLine, network: Path) -> None:
    network.write_bytes(network.read_bytes()[:-1000])
    assert_refused(cli, network, str(network))


def test_what_is_no_weights_file(cli: CommandLine, tmp_path: Path) -> None:
    for name in ("notes.safetensors", "notes.pt"):
        path = tmp_path / name
        path.write_text("nothing of the kind")
        assert_refused(cli, path, str(path))


def test_weights_of_another_model(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"encoder.weight": torch.zeros(4, 4)}, path)
    assert_refused(cli, path, "error: ")
