import numpy as np
import pytest
import torch

from qvg_engine.kernels.device_table import to_device

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return name


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("shape", [(0,), (7,), (4, 3), (4, 0)])
def test_tables_keep_their_numbers_shape_and_dtype(
    device: str, dtype: type, shape: tuple[int, ...]
) -> None:
    table = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, shape, dtype=dtype)
    moved = to_device(table, device)
    assert moved.device.type == device
    assert moved.cpu().numpy().dtype == dtype
    assert np.array_equal(moved.cpu().numpy(), table)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_strided_and_read_only_tables_come_over_in_order_and_contiguous(device: str) -> None:
    table = np.arange(12, dtype=np.int32).reshape(4, 3).T
    table.flags.writeable = False
    moved = to_device(table, device)
    assert moved.is_contiguous()
    assert moved.tolist() == table.tolist()


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_table_can_be_written_over_at_once(device: str) -> None:
    table = np.arange(5, dtype=np.int64)
    moved = to_device(table, device)
    table[:] = -1
    assert moved.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_host_does_not_wait() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        to_device(np.arange(1000, dtype=np.int32), "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_other_dtypes_are_stopped() -> None:
    with pytest.raises(AssertionError):
        to_device(np.zeros(3), "cpu")  # type: ignore[arg-type]
