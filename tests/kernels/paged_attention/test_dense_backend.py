"""Which backend is chosen for a device, and how each is called."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.device import ARCHITECTURES, Device
from qvg_engine.kernels.paged_attention import dense, reference
from qvg_engine.kernels.paged_attention.dense_backend import (
    DENSE_BACKENDS,
    Choice,
    DenseBackend,
    Job,
    dense_backend,
    refusal,
)

BF16 = Job(head_dim=128, dtype=torch.bfloat16)
BIASED = Job(head_dim=128, dtype=torch.bfloat16, biased=True)
ALL = frozenset({"flash_attn_interface", "flash_attn", "xformers", "triton"})
TRITON = frozenset({"triton"})


def device(capability: int) -> Device:
    return Device(capability=capability, num_multiprocessors=132)


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        (80, ALL, "flash-attn"),
        (86, TRITON, "torch-flash"),
        (89, TRITON, "torch-flash"),
        (90, ALL, "flash-attn-3"),
        (90, TRITON, "cudnn"),
        (100, ALL, "cudnn"),
        (120, frozenset(), "torch-flash"),
        (75, ALL, "torch-efficient"),
    ],
)
def test_the_first_that_can_is_chosen(
    capability: int, packages: frozenset[str], expected: DenseBackend
) -> None:
    assert dense_backend(device(capability), BF16, packages=packages).backend == expected


def test_a_bias_goes_to_our_kernel_and_without_triton_to_the_reference() -> None:
    for capability in ARCHITECTURES:
        assert dense_backend(device(capability), BIASED, packages=ALL).backend == "triton"
        without = dense_backend(device(capability), BIASED, packages=frozenset())
        assert without.backend == "reference"
        assert "triton: not installed" in without.passed_over


def test_other_dtypes_and_head_dims_go_to_torch() -> None:
    exact = Job(head_dim=24, dtype=torch.float32, biased=True)
    assert dense_backend(device(90), exact, packages=ALL).backend == "torch-efficient"
    odd = Job(head_dim=24, dtype=torch.float16, biased=True)
    assert dense_backend(device(90), odd, packages=ALL).backend == "reference"


def test_a_choice_says_what_was_passed_over() -> None:
    choice = dense_backend(device(90), BF16, packages=TRITON)
    assert str(choice) == "cudnn (flash-attn-3: not installed)"
    assert str(Choice("triton")) == "triton"


def test_a_forced_backend_is_taken_or_refused() -> None:
    for name in DENSE_BACKENDS:
        assert dense_backend(device(90), BF16, packages=ALL, forced=name) == Choice(name)
    with pytest.raises(ConfigError, match="'xformers' cannot be used: not installed; use one of"):
        dense_backend(device(90), BF16, packages=TRITON, forced="xformers")
    with pytest.raises(ConfigError, match="'flash-attn-3' cannot be used: for Hopper only"):
        dense_backend(device(89), BF16, packages=ALL, forced="flash-attn-3")


def test_a_forced_backend_without_a_bias_leaves_such_jobs_to_others() -> None:
    choice = dense_backend(device(89), BIASED, packages=ALL, forced="torch-flash")
    assert choice.backend == "triton"
    assert choice.passed_over[0] == "torch-flash: takes no bias"


def test_every_backend_can_be_called() -> None:
    assert set(dense.CALLS) == set(DENSE_BACKENDS)


@pytest.mark.parametrize("name", ["torch-flash", "cudnn", "torch-efficient"])
@pytest.mark.parametrize("needs_lse", [False, True])
def test_torch_operators_return_what_is_promised(name: DenseBackend, needs_lse: bool) -> None:
    queries = torch.empty(2, 70, 64, device="meta", dtype=torch.bfloat16)
    keys = torch.empty(2, 100, 64, device="meta", dtype=torch.bfloat16)[:, :90]
    out, lse = dense.CALLS[name](dense.Given(queries, keys, keys, None, 0.1, needs_lse))
    assert (out.shape, out.dtype) == (queries.shape, queries.dtype)
    assert (lse.shape, lse.dtype) == ((2, 70), torch.float32)


def test_the_operator_that_takes_a_bias_in_fp32() -> None:
    queries = torch.empty(2, 70, 64, device="meta")
    keys = torch.empty(2, 90, 64, device="meta")
    out, lse = dense.CALLS["torch-efficient"](
        dense.Given(queries, keys, keys, torch.empty(90, device="meta"), 0.1, True)
    )
    assert out.shape == queries.shape
    assert lse.shape == (2, 70)


def tokens_first(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Any:
    """Attention as packages have it: [1, tokens, heads, head_dim]; rows of the lse padded."""
    assert queries.shape[0] == keys.shape[0] == 1
    queries, keys, values = (x[0].transpose(0, 1) for x in (queries, keys, values))
    out, lse = reference.attend(queries, keys, values, None, scale)
    return out.transpose(0, 1)[None], lse[None]


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, return_attn_probs: bool = False
) -> Any:
    out, lse = tokens_first(q, k, v, softmax_scale)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_3_func(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Any:
    return tokens_first(q, k, v, softmax_scale)


def memory_efficient(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Any:
    out, lse = tokens_first(query, key, value, scale)
    return out, torch.nn.functional.pad(lse, (0, 5), value=torch.nan)


@pytest.mark.parametrize(
    ("name", "module", "function", "stand_in"),
    [
        ("flash-attn", "flash_attn", "flash_attn_func", flash_attn_func),
        ("flash-attn-3", "flash_attn_interface", "flash_attn_func", flash_attn_func),
        ("flash-attn-3", "flash_attn_interface", "flash_attn_func", flash_attn_3_func),
        (
            "xformers",
            "xformers.ops",
            "memory_efficient_attention_forward_requires_grad",
            memory_efficient,
        ),
    ],
)
def test_packages_are_given_and_give_what_they_document(
    name: DenseBackend,
    module: str,
    function: str,
    stand_in: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module.partition(".")[0], ModuleType("package"))
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: stand_in}))
    queries, keys, values = torch.randn(2, 70, 64), torch.randn(2, 90, 64), torch.randn(2, 90, 64)
    out, lse = dense.CALLS[name](dense.Given(queries, keys, values, None, 0.1, True))
    expected = reference.attend(queries, keys, values, None, 0.1)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_our_kernel_takes_what_it_is_chosen_for() -> None:
    gpu_dense = pytest.importorskip("qvg_engine.kernels.paged_attention.gpu_dense")
    on = "cuda" if torch.cuda.is_available() else "cpu"
    for head_dim in (8, 16, 24, 32, 64, 128, 256):
        x = torch.empty(1, 1, head_dim, dtype=torch.bfloat16, device=on)
        job = Job(head_dim=head_dim, dtype=torch.bfloat16)
        chosen = refusal("triton", device(90), job, packages=TRITON) is None
        assert chosen == gpu_dense.supports(x, x)
