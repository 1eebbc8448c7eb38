"""What the Triton kernels take on GPUs that are not there.

One variant of every kernel is compiled for each architecture, another one for each; with
QVG_ALL_KERNELS=1 all are for all of them, which takes minutes. Figures to compare with are
written by

    python -m qvg_engine.kernels.offline --capability 80 89 90 100 120 \
        --store tests/data/kernel_resources.json
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from qvg_engine.errors import ConfigError
from qvg_engine.kernels import offline
from qvg_engine.kernels.device import ARCHITECTURES
from qvg_engine.kernels.gpu import Variant
from qvg_engine.kernels.offline import SHARED_BYTES, Compiled

STORED = Path(__file__).resolve().parents[1] / "data" / "kernel_resources.json"
# Kernels that have no other way, and were tuned with a later Triton.
SPILLS = {
    "3.6.0": {
        ("attend-eight-bit-sm100-q128-d128-parts-biased", 100),
        ("kmeans-assign-d64", 100),
        ("kmeans-refill-d64", 100),
        ("store-q4-d128-w4", 120),
    }
}
COMPILES_ALL = os.environ.get("QVG_ALL_KERNELS", "0") == "1"


def run_program(*arguments: str, interpreted: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "qvg_engine.kernels.offline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    path = tmp_path_factory.mktemp("offline") / "figures.json"
    sample = () if COMPILES_ALL else ("--sample",)
    capabilities = map(str, ARCHITECTURES)
    done = run_program("--capability", *capabilities, *sample, "--jobs", "2", "--json", str(path))
    assert path.exists(), done.stderr
    return msgspec.json.decode(path.read_bytes(), type=list[Compiled])


def test_every_architecture_gets_its_share(compiled: list[Compiled]) -> None:
    counts = [sum(item.capability == wanted for item in compiled) for wanted in ARCHITECTURES]
    assert min(counts) >= len(offline.MODULES), counts


def test_a_sample_has_every_kernel_on_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {
        **{f"a{n}": Variant(name=f"a{n}", kernel="a", signature={}) for n in range(3)},
        "b": Variant(name="b", kernel="b", signature={}, architectures=(89, 90, 100, 120)),
        "c": Variant(name="c", kernel="c", signature={}, architectures=(80, 120)),
    }
    monkeypatch.setattr(offline, "all_variants", lambda: variants)
    everything = offline.work_list(list(variants), ARCHITECTURES)
    assert len(everything) == 3 * 5 + 4 + 2
    sample = offline.work_list(list(variants), ARCHITECTURES, sample=True)
    assert set(sample) <= set(everything)
    kernels = sorted((variants[name].kernel, capability) for name, capability in sample)
    assert kernels == sorted({(variants[n].kernel, c) for n, c in everything})
    assert {name for name, _ in sample} == set(variants)


def test_all_variants_compile(compiled: list[Compiled]) -> None:
    assert [item for item in compiled if item.error is not None] == []


def test_none_has_too_few_registers(compiled: list[Compiled]) -> None:
    known = SPILLS.get(triton.__version__, set())
    spilling = [item for item in compiled if item.resources and item.resources.spills]
    assert [item for item in spilling if (item.variant, item.capability) not in known] == []


def test_all_fit_shared_memory(compiled: list[Compiled]) -> None:
    too_large = [
        item
        for item in compiled
        if item.resources and item.resources.shared_bytes > SHARED_BYTES[item.capability]
    ]
    assert too_large == []


def test_figures_are_those_that_were_stored(compiled: list[Compiled]) -> None:
    stored: dict[str, Any] = json.loads(STORED.read_text())
    if triton.__version__ not in stored:
        pytest.skip(f"no figures of Triton {triton.__version__}, only of {', '.join(stored)}")
    moved = []
    for item in compiled:
        assert item.resources is not None, item
        expected = stored[triton.__version__].get(item.variant, {}).get(f"sm_{item.capability}")
        assert expected is not None, f"store the figures of {item.variant} on {item.capability}"
        actual = {
            "registers": item.resources.registers,
            "loop": item.resources.loop_instructions,
        }
        if any(abs(actual[name] - expected[name]) > 0.05 * expected[name] for name in actual):
            moved.append((item.variant, item.capability, actual, expected))
    assert moved == []


def test_a_loop_is_as_long_as_it_is() -> None:
    listing = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;      /* 0x0 */
        /*0010*/                   LDG.E R2, [R4.64] ;         /* 0x0 */
        /*0020*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0030*/                   STL [R1], R2 ;
        /*0040*/              @!P0 BRA 0x10 ;
        /*0050*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0060*/               @P1 BRA 0x50 ;
        /*0070*/                   BRA 0x70;
    """
    usage = "Function x: REG:40 STACK:8 SHARED:0 LOCAL:16 CONSTANT[0]:400"
    resources = offline._read_resources(usage, listing, shared_bytes=1024)
    assert resources.registers == 40
    assert (resources.spill_loads, resources.spill_stores, resources.local_bytes) == (0, 1, 16)
    assert resources.instructions == 8
    assert resources.loop_instructions == 4
    assert resources.spills


def test_figures_of_other_versions_and_variants_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "all_variants", lambda: {"new": None, "kept": None})
    path = tmp_path / "figures.json"
    kept = {"sm_90": {"registers": 1, "loop": 2}}
    other = {"gone": kept}
    path.write_text(json.dumps({"1.0": other, triton.__version__: {"kept": kept, "gone": kept}}))
    resources = offline.Resources(
        registers=40,
        spill_loads=0,
        spill_stores=0,
        local_bytes=0,
        shared_bytes=0,
        instructions=9,
        loop_instructions=5,
    )
    offline.store_figures([Compiled(variant="new", capability=80, resources=resources)], path)
    new = {"sm_80": {"registers": 40, "loop": 5}}
    assert json.loads(path.read_text()) == {
        "1.0": other,
        triton.__version__: {"kept": kept, "new": new},
    }


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_program(interpreted=True)
    assert done.returncode == 2
    assert done.stderr.endswith("error: TRITON_INTERPRET=1 leaves nothing to compile: unset it\n")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match="TRITON_INTERPRET"):
        offline.all_variants()
