"""Dense attention in Triton against the reference."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from qvg_engine.kernels.device import ARCHITECTURES, Device
from qvg_engine.kernels.paged_attention import (
    dense,
    gpu_dense,
    gpu_merge,
    reference,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# fp32 products are not offered on a GPU.
DTYPES = [torch.float16, torch.bfloat16] + ([torch.float32] if DEVICE == "cpu" else [])
# Rounding of the weights and of the output, relative to values of about one.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6}


def rows(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def padded(x: Tensor, room: int) -> Tensor:
    """The rows [heads, tokens, head_dim] in a workspace of `room` tokens, NaN after them."""
    workspace = x.new_full((x.shape[0], room, x.shape[2]), math.nan)
    workspace[:, : x.shape[1]] = x
    return workspace


def check(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    torch.testing.assert_close(got[0].float(), expected[0], rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(got[1], expected[1], rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("num_queries", "num_tokens", "head_dim", "num_ranges"),
    [(1, 1, 64, 1), (130, 300, 64, 1), (16, 700, 128, 4), (65, 256, 128, 2), (3, 129, 16, None)],
)
def test_output_and_log_sums_are_those_of_the_reference(
    num_queries: int,
    num_tokens: int,
    head_dim: int,
    num_ranges: int | None,
    biased: bool,
    dtype: torch.dtype,
) -> None:
    # As folded heads are: the queries of a head are not contiguous.
    queries = rows(num_queries, 2, head_dim, dtype=dtype, seed=0).transpose(0, 1)
    keys = rows(2, num_tokens, head_dim, dtype=dtype, seed=1)
    values = rows(2, num_tokens, head_dim, dtype=dtype, seed=2)
    bias = rows(num_tokens, dtype=torch.float32, seed=3) if biased else None
    room = num_tokens + 5
    got = gpu_dense.attend(
        queries,
        padded(keys, room),
        padded(values, room),
        num_tokens,
        bias,
        head_dim**-0.5,
        num_ranges=num_ranges,
    )
    assert got[0].dtype == dtype
    check(got, reference.attend(queries, keys, values, bias, head_dim**-0.5), dtype)


def test_scores_that_overflow_exp_and_weights_that_vanish() -> None:
    queries = torch.full((1, 5, 64), 20.0, dtype=torch.float16, device=DEVICE)
    keys = torch.zeros(1, 200, 64, dtype=torch.float16, device=DEVICE)
    keys[0, 150] = 20.0
    values = rows(1, 200, 64, dtype=torch.float16, seed=0)
    for num_ranges in (1, 2):
        out, lse = gpu_dense.attend(queries, keys, values, 200, None, 1.0, num_ranges=num_ranges)
        assert torch.equal(out, values[:, 150:151].expand_as(out))
        torch.testing.assert_close(lse, torch.full_like(lse, 25600.0))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("where", ["queries", "keys", "values"])
@pytest.mark.parametrize("num_ranges", [1, 2])
def test_nan_is_not_lost(where: str, num_ranges: int) -> None:
    tensors = {
        name: rows(1, 200, 64, dtype=torch.float16, seed=0)
        for name in ("queries", "keys", "values")
    }
    tensors[where][0, 7, 3] = math.nan
    queries, keys, values = tensors.values()
    out, _ = gpu_dense.attend(queries, keys, values, 200, None, 0.125, num_ranges=num_ranges)
    assert out[0, 7].isnan().any()
    if where == "queries":
        assert not out[0, 8].isnan().any()


def test_merge_is_that_of_the_reference() -> None:
    first = rows(2, 45, 64, dtype=torch.float32, seed=0), rows(2, 45, dtype=torch.float32, seed=1)
    second = rows(2, 45, 64, dtype=torch.float16, seed=2), rows(2, 45, dtype=torch.float32, seed=3)
    first[1][0, 0] = second[1][0, 1] = second[1][0, 2] = first[1][0, 2] = -math.inf
    first[1][0, 3], second[1][0, 3] = 900.0, -900.0
    out, lse = gpu_merge.merge(first, second)
    expected = dense.merge(first, second)
    torch.testing.assert_close(out, expected[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(lse, expected[1], rtol=2e-6, atol=2e-6)
    assert lse[0, 2] == -math.inf
    assert torch.equal(out[0, 1], first[0][0, 1])


def test_ranges_fill_a_device_and_are_never_empty() -> None:
    for num_programs in (1, 12, 100, 156, 444, 5000):
        for num_blocks in (1, 2, 37, 1000):
            count = gpu_merge.num_ranges(num_programs, num_blocks, 132)
            length = -(-num_blocks // count)
            assert (count - 1) * length < num_blocks <= count * length
            assert count == 1 or count * num_programs <= 4 * 132
    assert gpu_merge.num_ranges(12, 1000, 132) == 11
    # 1.2 waves of programs would leave the device idle for much of the second.
    assert gpu_merge.num_ranges(156, 256, 132) > 1
    assert gpu_merge.num_ranges(1320, 256, 132) == 1


def test_architectures_of_devices() -> None:
    expected = {75: 80, 80: 80, 86: 89, 87: 80, 89: 89, 90: 90, 100: 100, 103: 100, 121: 120}
    for capability, architecture in expected.items():
        device = Device(capability=capability, num_multiprocessors=1)
        assert device.architecture == architecture
        assert device.has_e4m3 == (capability >= 89)


def test_every_architecture_has_variants_of_its_own_name() -> None:
    variants = gpu_dense.variants() + gpu_merge.variants()
    assert len({variant.name for variant in variants}) == len(variants)
    for architecture in ARCHITECTURES:
        assert sum(variant.is_offered_on(architecture) for variant in variants) == 16 + 6


def test_what_is_supported() -> None:
    x = torch.empty(1, 2, 64, dtype=torch.float16, device=DEVICE)
    assert gpu_dense.supports(x, x)
    assert not gpu_dense.supports(x, x.bfloat16())
    assert not gpu_dense.supports(x[..., :24], x[..., :24])
    assert not gpu_dense.supports(x.double(), x.double())
