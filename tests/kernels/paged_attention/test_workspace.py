import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.paged_attention import Workspace


def test_bytes_are_those_of_the_tensors() -> None:
    workspace = Workspace(
        num_heads=3, head_dim=64, max_tokens=100, device="cpu", dtype=torch.bfloat16
    )
    storages = (workspace.keys, workspace.values, workspace.bias)
    assert workspace.num_bytes == sum(x.untyped_storage().nbytes() for x in storages)
    assert workspace.num_bytes == 2 * 3 * 100 * 64 * 2 + 100 * 4
    assert workspace.max_tokens == 100


def test_a_workspace_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 token, got 0"):
        Workspace(num_heads=1, head_dim=64, max_tokens=0, device="cpu", dtype=torch.float32)
