"""The GPU report, as far as it goes on a CPU: every section with tiny sizes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "benchmarks" / "gpu_report.py"
SECTIONS = ["peaks", "parity", "decode", "encode", "step", "attention", "videos"]
CODED = {"qvg", "qvg-pro", "q2", "q1"}
FORMATS = CODED | {"bf16"}

# An image with torch, triton, numba and msgspec has none of these.
WITHOUT_EXTRAS = """
import runpy, sys
for name in ("typer", "rich", "av", "diffusers", "safetensors", "matplotlib", "PIL", "pytest"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_report(
    folder: Path, *arguments: str, status: int = 0
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(PROGRAM), "--output", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == status, done.stderr
    path = folder / "gpu_report.json"
    return json.loads(path.read_text()) if path.exists() else {}, done


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("report")
    measured, _ = run_report(folder, "--dry-run", "--minutes", "60", "--only", *SECTIONS)
    return measured, (folder / "gpu_report.md").read_text()


def section(measured: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [item for item in measured["sections"] if item["name"] == name]
    assert isinstance(found, dict)
    return found


def test_every_section_measures_on_a_cpu(dry_run: tuple[dict[str, Any], str]) -> None:
    measured, _ = dry_run
    assert measured["dry_run"]
    assert [item["name"] for item in measured["sections"]] == SECTIONS
    for item in measured["sections"]:
        assert item["rows"], item["name"]
        assert [row for row in item["rows"] if "error" in row] == []


def test_all_formats_are_measured(dry_run: tuple[dict[str, Any], str]) -> None:
    measured, _ = dry_run
    for name in ("decode", "encode", "attention"):
        assert {row["format"] for row in section(measured, name)["rows"]} - {"dense"} == FORMATS
    kernels = {row["kernel"] for row in section(measured, "parity")["rows"]}
    assert {f"{verb} {name}" for name in FORMATS for verb in ("decode", "encode")} <= kernels
    assert {"rotate", "place", "k-means"} <= kernels
    assert {f"decode {name} to 8 bits" for name in FORMATS} | {"8-bit attention"} <= kernels
    strategies = {(way, name) for way in ("workspace", "eight-bit") for name in FORMATS}
    strategies |= {("fused", name) for name in CODED}
    assert {f"attention {strategy} {name}" for strategy, name in strategies} <= kernels
    assert {row["format"] for row in section(measured, "step")["rows"]} == {"dense", "bf16", "q2"}


def test_attention_is_compared_with_the_best_dense_one(
    dry_run: tuple[dict[str, Any], str],
) -> None:
    rows = section(dry_run[0], "attention")["rows"]
    for row in rows:
        same = [other for other in rows if other["cached"] == row["cached"]]
        best = min(other["ms"] for other in same if other["format"] == "dense")
        if row["format"] != "dense":
            assert row["to best dense"] == pytest.approx(row["ms"] / best)


def test_the_choice_of_an_engine_stands_beside_the_times(
    dry_run: tuple[dict[str, Any], str],
) -> None:
    rows = [
        row
        for row in section(dry_run[0], "attention")["rows"]
        # "auto" takes nothing that loses more than what pages hold.
        if row["format"] != "dense" and row["strategy"] != "eight-bit"
    ]
    assert rows
    by_case: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault((row["format"], row["queries"], row["cached"]), []).append(row)
    for (name, *_), same in by_case.items():
        chosen = {row["auto takes"] for row in same}
        if name not in CODED:
            assert chosen == {"workspace"}
            continue
        expected = {row["strategy"]: row["expected ms"] for row in same if "expected ms" in row}
        assert set(expected) == {"workspace", "fused"}
        assert chosen == {min(expected, key=expected.__getitem__)}


def test_what_is_missing_is_said_with_its_reason(dry_run: tuple[dict[str, Any], str]) -> None:
    measured, text = dry_run
    reasons = section(measured, "attention")["left_out"]
    assert any("FlashAttention 3: not on a CPU" in reason for reason in reasons)
    for reason in reasons:
        assert f"* {reason}\n" in text


def test_the_report_names_what_was_measured(dry_run: tuple[dict[str, Any], str]) -> None:
    measured, text = dry_run
    machine = measured["machine"]
    assert machine["torch"] == torch.__version__
    assert {"device", "date", "commit", "triton", "python"} <= machine.keys()
    assert "dry run on a CPU" in text
    assert f"| torch | {torch.__version__} |" in text


def test_whole_videos_are_compared_with_the_dense_cache(
    dry_run: tuple[dict[str, Any], str],
) -> None:
    rows = section(dry_run[0], "videos")["rows"]
    assert [(row["history"], row["format"]) for row in rows] == [
        ("window", "dense"),
        ("window", "q2"),
        ("full", "dense"),
        ("full", "q2"),
    ]
    for dense, coded in (rows[:2], rows[2:]):
        assert dense["chunks"] == coded["chunks"] == coded["chunks compared"]
        assert coded["to dense"] == pytest.approx(coded["s"] / dense["s"])
        assert coded["kv_ratio"] > dense["kv_ratio"]


@pytest.mark.parametrize("errors", [None, 0, 3])
def test_compute_sanitizer(errors: int | None, tmp_path: Path) -> None:
    """A program that stands for it runs its command, and counts errors."""
    path = os.environ["PATH"]
    if errors is not None:
        program = tmp_path / "compute-sanitizer"
        program.write_text(
            f'#!/bin/sh\nshift 2\necho "ERROR SUMMARY: {errors} errors"\nexec "$@"\n'
        )
        program.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{path}"
    elif sanitizer := shutil.which("compute-sanitizer"):
        pytest.skip(f"there is {sanitizer}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        patch.setenv("CUDA_HOME", str(tmp_path / "none"))
        arguments = ("--dry-run", "--only", "sanitize", "--minutes", "9")
        measured, _ = run_report(tmp_path, *arguments, status=int(errors == 3))
    found = section(measured, "sanitize")
    if errors is None:
        assert found["rows"] == []
        assert found["left_out"][0] == "tool memcheck: compute-sanitizer is not available"
    elif errors:
        assert all("SUMMARY: 3" in row["error"] for row in found["rows"])
    else:
        assert [row["errors"] for row in found["rows"]] == [0, 0]


def test_without_time_everything_is_left_out(tmp_path: Path) -> None:
    measured, _ = run_report(tmp_path, "--dry-run", "--only", "decode", "--minutes", "1e-9")
    (only,) = measured["sections"]
    assert only["rows"] == []
    assert len(only["left_out"]) == 2 * len(FORMATS), "dense and 8 bits"
    assert all(reason.endswith("no time left") for reason in only["left_out"])


def test_a_machine_without_a_gpu_is_refused(tmp_path: Path) -> None:
    measured, done = run_report(tmp_path, status=2)
    assert measured == {}
    assert "there is no CUDA device: --dry-run tries the program on a CPU" in done.stderr


@pytest.fixture(scope="module")
def case() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "gpu_report_case", REPOSITORY / "benchmarks" / "gpu_sections" / "case.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_one_case_that_fails_does_not_stop_the_others(case: ModuleType) -> None:
    def raising(error: Exception) -> Any:
        def measure(_: float) -> Any:
            raise error

        return measure

    def cases() -> Iterator[Any]:
        yield case.Case({"n": 1}, raising(case.NotThere("no such thing")))
        yield case.Case({"n": 2}, raising(ValueError("wrong\nnumbers")))
        yield case.Case({"n": 3}, raising(torch.OutOfMemoryError("too large")))
        yield case.Case({"n": 4}, raising(case.OutOfTime("would take 9 s")))
        yield case.Case({"n": 5}, lambda left: {"left": left})

    section = case.run_section("name", "Title", cases(), seconds=60.0)
    assert section.left_out == ["n 1: no such thing", "n 3: too large", "n 4: would take 9 s"]
    assert section.failures == [{"n": 2, "error": "ValueError: wrong numbers"}]
    assert [row["n"] for row in section.rows] == [2, 5]
    assert 0 < section.rows[1]["left"] <= 60
