"""Results on their way to the host."""

import pytest
import torch

from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.readback import Readback, pack, unpack

TENSORS = (
    torch.tensor(True),
    torch.arange(5, dtype=torch.uint8),
    torch.randn(2, 3, dtype=torch.float64),
    torch.randn(4, 3).T,
    torch.empty(0, 7, dtype=torch.int64),
    torch.randn(3).bfloat16(),
    torch.tensor(2**40),
)


def test_what_is_packed_comes_out_as_it_was() -> None:
    packed = pack(TENSORS)
    assert packed.dtype == torch.uint8
    assert packed.numel() == sum(x.nbytes for x in TENSORS)
    like = [torch.empty(x.shape, dtype=x.dtype, device="meta") for x in TENSORS]
    for found, expected in zip(unpack(packed, like), TENSORS, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_on_the_host_nothing_is_copied() -> None:
    readback = Readback(TENSORS)
    for found, given in zip(readback.wait(), TENSORS, strict=True):
        assert found is given
    assert Readback([]).wait() == ()
    assert send(TENSORS[2], "cpu") is TENSORS[2]
    assert send(TENSORS[2], "cpu", torch.float32).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_from_a_gpu_without_waiting() -> None:
    on_device = [send(x, "cuda") for x in TENSORS]
    torch.cuda.set_sync_debug_mode("error")
    try:
        readback = Readback(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(2):
        for found, expected in zip(readback.wait(), TENSORS, strict=True):
            assert found.device.type == "cpu"
            assert torch.equal(found, expected)
