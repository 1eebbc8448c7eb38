"""What `doctor` says of attention."""

from typing import Any

import pytest
import torch

from qvg_engine import EngineConfig
from qvg_engine.attention_choice import AttentionChoice
from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.format import FORMATS, CacheGeometry, LayerFormats, get_format
from qvg_engine.cli.attention_text import (
    describe_attention,
    describe_choice,
    describe_dense,
    describe_fused,
)
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.device import Device
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.paged_attention.cost_model import Cost, CostModel
from qvg_engine.kernels.paged_attention.dense_backend import DENSE_BACKENDS, Job

HOPPER = Device(capability=90, num_multiprocessors=132)
AMPERE = Device(capability=80, num_multiprocessors=108)
JOB = Job(head_dim=128, dtype=torch.bfloat16)
MODEL = CostModel(
    {
        "workspace": Cost(fixed=0.1, per_pair=1e-8, per_token=1e-6),
        "fused": Cost(fixed=0.05, per_pair=2e-8, per_token=0.0),
    }
)


def layout(*, page_size: int = 64, head_dim: int = 128) -> CacheLayout:
    page_format = get_format("bf16")
    return CacheLayout(
        geometry=CacheGeometry(num_layers=3, num_kv_heads=2, head_dim=head_dim),
        page_size=page_size,
        formats=(LayerFormats(keys=page_format, values=page_format),),
        compute_itemsize=2,
        codebook_overhead=0.33,
        max_live_codebooks=2,
    )


def test_on_a_cpu_it_is_one_plain_line(toy: Any) -> None:
    config = EngineConfig(device="cpu", kv_format="dense", page_size=4)
    ((name, line),) = describe_attention(config, toy.family())
    assert name == "on the CPU"
    assert "decodes pages to a workspace" in line


def test_what_was_asked_for_is_said(toy: Any) -> None:
    config = EngineConfig(device="cpu", kv_format="dense", attention_backend="reference")
    rows = describe_attention(config, toy.family())
    assert rows == [("strategy", "reference: attention_backend is 'reference'")]


def test_what_cannot_be_had_is_refused(toy: Any) -> None:
    config = EngineConfig(device="cpu", kv_format="dense", attention_backend="fused")
    with pytest.raises(ConfigError, match="cannot be had: it needs a CUDA device"):
        describe_attention(config, toy.family())


def test_every_dense_attention_has_a_line() -> None:
    rows = dict(describe_dense(HOPPER, JOB, packages=frozenset({"triton"})))
    assert rows.pop("dense attention") == "cudnn"
    assert set(rows) == {f"  not {name}" for name in DENSE_BACKENDS if name != "cudnn"}
    assert rows["  not xformers"] == rows["  not flash-attn-3"] == "not installed"
    assert rows["  not triton"] == "cudnn comes first"


def test_a_dense_attention_that_cannot_says_why() -> None:
    job = Job(head_dim=128, dtype=torch.float32)
    rows = dict(describe_dense(AMPERE, job, packages=frozenset()))
    assert rows["dense attention"] == "torch-efficient"
    assert rows["  not cudnn"] == "takes fp16 and bf16 only"


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_every_format_says_whether_fused_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvg_engine.backend_check.device_of", lambda _: AMPERE)

    def describe(of: CacheLayout) -> dict[str, str]:
        (_, *rows) = describe_fused(of, device=torch.device("cuda"), dtype=torch.bfloat16)
        return {name.strip(): line for name, line in rows}

    found = describe(layout())
    assert set(found) == set(FORMATS)
    assert found["q2"] == found["qvg"] == "offered"
    assert found["qvg-pro"] == "not offered: the decoding of K would spill registers on sm_80"
    assert found["bf16"].startswith("not offered: it decodes codes")
    assert "page_size is 48" in describe(layout(page_size=48))["q2"]
    small = describe(layout(head_dim=24))
    assert small["q2"] == "not offered: heads have 24 channels, and it takes 64 or 128"
    assert small["qvg-pro"] == "not offered: group is 16: give a divisor of the head's 24 channels"


def test_measured_costs_say_where_the_choice_changes() -> None:
    choice = AttentionChoice(strategy="auto", reason="as measured", costs=MODEL)
    assert describe_choice(choice, queries=4680) == [
        ("strategy", "auto: as measured"),
        ("  64 queries", "fused for any number of cached tokens"),
        ("  256 queries", "fused below 32,052 cached tokens, workspace from there on"),
        ("  4,680 queries", MODEL.describe(4680)),
    ]
    assert [name for name, _ in describe_choice(choice, queries=192)][1:] == [
        "  64 queries",
        "  192 queries",
    ]
