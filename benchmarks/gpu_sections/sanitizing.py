"""Kernels on small shapes under compute-sanitizer, where it is installed."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.gpu_sections.case import Case, NotThere, OutOfTime, Row
from benchmarks.gpu_sections.setup import Setup

TOOLS = ("memcheck", "racecheck")
_PROGRAM = Path(__file__).resolve().parents[1] / "gpu_report.py"
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def cases(setup: Setup) -> Iterator[Case]:
    """The parity section again under each tool, with half of the time that is left."""
    for tool in TOOLS:
        yield Case({"tool": tool}, partial(_run, setup, tool))


def find_sanitizer() -> str | None:
    """The program on the path, or beside the CUDA compiler."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    places = [os.environ.get("PATH", ""), *map(str, folders)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def _run(setup: Setup, tool: str, left: float) -> Row:
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise NotThere("compute-sanitizer is not available")
    dry = setup.device.type == "cpu"
    section = ["--dry-run", "--only", "peaks"] if dry else ["--only", "parity"]
    seconds = left if tool == TOOLS[-1] else left / 2
    with tempfile.TemporaryDirectory() as folder:
        command = [sanitizer, "--tool", tool, sys.executable, str(_PROGRAM), "--output", folder]
        command += [*section, "--minutes", str(seconds / 120)]
        start = time.monotonic()
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=seconds,
                # Each tensor by itself, so that reading past its end is seen.
                env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        except subprocess.TimeoutExpired as error:
            raise OutOfTime(f"not done in {seconds:.0f} s") from error
    found = _SUMMARY.search(done.stdout + done.stderr)
    assert found is not None, (done.stdout + done.stderr)[-500:]
    assert int(found[1]) == 0, found[0]
    assert done.returncode == 0, (done.stdout + done.stderr)[-500:]
    return {"errors": 0, "s": time.monotonic() - start}
