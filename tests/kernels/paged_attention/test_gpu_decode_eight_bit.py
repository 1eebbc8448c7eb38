"""Pages to 8 bits in Triton against plain torch, every format, in the interpreter or on a GPU."""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from qvg_engine.kernels.codec.e4m3 import from_e4m3
from qvg_engine.kernels.device import ARCHITECTURES, device_of
from qvg_engine.kernels.paged_attention import (
    DenseSegment,
    EightBitWorkspace,
    LayerPages,
    PagedSegment,
    PageRuns,
    PlainPages,
    RopeTransform,
    gpu_bound_values,
    gpu_decode_eight_bit,
    paged_attention_with_lse,
    reference_decode_eight_bit,
)
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from tests.kernels.conftest import as_runs
from tests.kernels.paged_attention.eight_bit_pages import (
    FORMATS,
    RUNS,
    make_pages,
    nan_workspace,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
E4M3 = torch.uint8 if device_of(DEVICE).has_e4m3 else torch.float16
COUNT, START = RUNS.num_tokens, 5
WRITTEN = slice(START, START + COUNT)


def two_workspaces(
    num_heads: int, head_dim: int, value_dtype: torch.dtype = E4M3
) -> list[EightBitWorkspace]:
    return [
        nan_workspace(
            num_heads=num_heads,
            head_dim=head_dim,
            max_tokens=COUNT + 20,
            device=DEVICE,
            value_dtype=value_dtype,
        )
        for _ in range(2)
    ]


def check_keys(got: EightBitWorkspace, expected: EightBitWorkspace) -> None:
    """Angles are fp32 here and fp64 on the CPU: a code may fall to the other side of a half."""
    scales, expected_scales = got.key_scales[:, WRITTEN], expected.key_scales[:, WRITTEN]
    torch.testing.assert_close(scales, expected_scales, rtol=2e-6, atol=0)
    off = (got.keys.int() - expected.keys.int()).abs()
    assert off.amax() <= 1
    assert off.float().mean() < 1e-3
    assert got.key_scales[:, :START].isnan().all()
    assert got.key_scales[:, WRITTEN.stop :].isnan().all()


def check_values(got: EightBitWorkspace, expected: EightBitWorkspace) -> None:
    if DEVICE.type == "cpu":
        assert torch.equal(got.values.view(torch.uint8), expected.values.view(torch.uint8))
        return
    # A device may multiply and add at once before it rounds.
    codes, wanted = (
        from_e4m3(x.values) if x.has_e4m3 else x.values.float() for x in (got, expected)
    )
    torch.testing.assert_close(codes, wanted, rtol=0.13, atol=2.0**-9, equal_nan=True)
    assert (codes != wanted)[..., WRITTEN].float().mean() < 1e-2


@pytest.mark.parametrize(
    ("name", "num_heads", "head_dim"),
    [*((name, 1, 128) for name in FORMATS), ("q2", 3, 64), ("bfloat16", 3, 64)],
)
def test_codes_and_scales_are_those_of_the_reference(
    name: str, num_heads: int, head_dim: int
) -> None:
    sizes: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim, "device": DEVICE}
    keys = make_pages(name, is_key=True, **sizes)
    values = make_pages(name, is_key=False, **sizes)
    assert gpu_decode_eight_bit.supports(keys)
    grid = RopeGrid(RopeTables(head_dim=head_dim, device=DEVICE), height=5, width=8)
    got, expected = two_workspaces(num_heads, head_dim)
    for kernels, workspace in (
        (gpu_decode_eight_bit, got),
        (reference_decode_eight_bit, expected),
    ):
        kernels.bound_pages(workspace, values, RUNS.cut(0, 90))
        kernels.bound_pages(workspace, values, RUNS.cut(90, COUNT))
        kernels.decode_keys(workspace, keys, RUNS, start=START, rope=grid)
    # On a device products may be added at once.
    rtol = 0 if DEVICE.type == "cpu" else 1e-6
    torch.testing.assert_close(got.value_scales, expected.value_scales, rtol=rtol, atol=0)
    assert (got.value_scales > 0).all()
    check_keys(got, expected)
    expected.value_scales.copy_(got.value_scales)
    gpu_decode_eight_bit.decode_values(got, values, RUNS, start=START)
    reference_decode_eight_bit.decode_values(expected, values, RUNS, start=START)
    check_values(got, expected)


@pytest.mark.parametrize("name", ["q2", "bfloat16"])
def test_halves_and_keys_that_are_not_rotated(name: str) -> None:
    pages = make_pages(name, num_heads=2, head_dim=64, is_key=False, device=DEVICE)
    got, expected = two_workspaces(2, 64, torch.float16)
    for kernels, workspace in (
        (gpu_decode_eight_bit, got),
        (reference_decode_eight_bit, expected),
    ):
        kernels.bound_pages(workspace, pages, RUNS)
        kernels.decode_keys(workspace, pages, RUNS, start=START, rope=None)
        kernels.decode_values(workspace, pages, RUNS, start=START)
    check_keys(got, expected)
    check_values(got, expected)


@pytest.mark.parametrize(
    ("entries", "start", "expected"),
    [
        ([(1, 0, 0, 64), (3, 64, 5, 69)], 32, 16),
        ([(1, 0, 0, 64), (3, 64, 0, 8), (2, 72, 0, 64)], 16, 8),
        ([(1, 0, 0, 64), (3, 64, 5, 69)], 40, 8),
        ([(1, 0, 0, 64), (3, 64, 0, 7)], 16, 1),
        ([(1, 0, 0, 64), (3, 64, 0, 64)], 3, 1),
    ],
)
def test_places_are_seen_to_be_aligned(
    entries: list[tuple[int, int, int, int]], start: int, expected: int
) -> None:
    runs = as_runs(entries)
    assert gpu_decode_eight_bit.alignment(runs, start) == expected
    pages = PlainPages(torch.randn(4, 1, 72, 64).to(DEVICE))
    got, wanted = two_workspaces(1, 64)
    for kernels, workspace in (
        (gpu_decode_eight_bit, got),
        (reference_decode_eight_bit, wanted),
    ):
        kernels.bound_pages(workspace, pages, runs)
        kernels.decode_values(workspace, pages, runs, start=start)
    check_values(got, wanted)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_whole_strategy_is_that_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and an own chunk behind them, in pieces that are merged, by Triton's kernels alone."""
    sizes: dict[str, Any] = {"num_heads": 2, "head_dim": 64, "device": DEVICE}
    layer = LayerPages(
        keys=make_pages("q2", is_key=True, **sizes),
        values=make_pages("bfloat16", is_key=False, **sizes),
    )
    keys, values = torch.randn(2, 40, 2, 64, device=DEVICE)
    positions = np.arange(500, 540)
    own = DenseSegment(
        keys=keys, values=values, positions=positions, log_weights=torch.rand(40, device=DEVICE)
    )
    queries = torch.randn(40, 2, 64, device=DEVICE) / 4
    grid = RopeGrid(RopeTables(head_dim=64, device=DEVICE), height=5, width=8)
    results = []
    for on_gpu in (False, True):
        monkeypatch.setattr("qvg_engine.kernels.gpu.supports", lambda _, on_gpu=on_gpu: on_gpu)
        results.append(
            paged_attention_with_lse(
                queries,
                [PagedSegment(layer, RUNS), own],
                workspace=nan_workspace(max_tokens=160, value_dtype=E4M3, **sizes),
                transform=RopeTransform(grid),
                query_positions=positions,
                strategy="eight-bit",
            )
        )
    expected, got = results
    # Weights are rounded to E4M3 beside the largest so far, not beside the largest of all.
    assert float((got.out - expected.out).norm() / expected.out.norm()) < 0.03
    torch.testing.assert_close(got.lse, expected.lse, rtol=0, atol=1e-2)


def test_nothing_to_decode_writes_nothing() -> None:
    none = RUNS.cut(0, 0)
    no_slots = PageRuns(RUNS.page_id, RUNS.first_token, RUNS.end, RUNS.end)
    for name in ("q2", "bfloat16"):
        pages = make_pages(name, num_heads=2, head_dim=64, is_key=False, device=DEVICE)
        got, untouched = two_workspaces(2, 64)
        for runs in (none, no_slots):
            gpu_decode_eight_bit.bound_pages(got, pages, runs)
            gpu_decode_eight_bit.decode_keys(got, pages, runs, start=3, rope=None)
            gpu_decode_eight_bit.decode_values(got, pages, runs, start=3)
        assert torch.equal(got.keys, untouched.keys)
        assert torch.equal(got.values, untouched.values)
        assert got.key_scales.isnan().all()
        assert (got.value_scales == 0).all()


def test_other_rows_have_no_kernel() -> None:
    assert not gpu_decode_eight_bit.supports(PlainPages(torch.zeros(1, 1, 8, 64).double()))
    # 4 bytes of codes a row.
    assert not gpu_decode_eight_bit.supports(
        make_pages("q1", num_heads=1, head_dim=32, is_key=False)
    )


def test_variants_are_named_once_and_have_e4m3_from_89_on() -> None:
    variants = gpu_decode_eight_bit.variants() + gpu_bound_values.variants()
    assert len({variant.name for variant in variants}) == len(variants)
    for architecture in ARCHITECTURES:
        of_values = [
            variant.constants["E4M3"]
            for variant in variants
            if "E4M3" in variant.constants and variant.is_offered_on(architecture)
        ]
        # Tiles of 89 are for 86 too.
        assert set(of_values) == {80: {False}, 89: {False, True}}.get(architecture, {True})


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("name", ["q2", "bfloat16"])
def test_the_host_does_not_wait(name: str) -> None:
    pages = make_pages(name, num_heads=2, head_dim=64, is_key=False, device=DEVICE)
    grid = RopeGrid(RopeTables(head_dim=64, device=DEVICE), height=5, width=8)
    workspace = two_workspaces(2, 64)[0]

    def decode_all() -> None:
        gpu_decode_eight_bit.bound_pages(workspace, pages, RUNS)
        gpu_decode_eight_bit.decode_keys(workspace, pages, RUNS, start=0, rope=grid)
        gpu_decode_eight_bit.decode_values(workspace, pages, RUNS, start=0)

    decode_all()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decode_all()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(workspace.key_scales[:, :COUNT].cpu().numpy()).all()
