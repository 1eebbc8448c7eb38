"""All sections within a number of minutes, and the report of them for people and programs."""

import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_sections import decoding, encoding, parity, sanitizing
from benchmarks.gpu_sections.attending import Attending
from benchmarks.gpu_sections.case import Case, Row, Section, run_section
from benchmarks.gpu_sections.engines import Engines
from benchmarks.gpu_sections.peaks import Peaks
from benchmarks.gpu_sections.setup import Setup
from benchmarks.gpu_sections.stepping import Stepping
from benchmarks.gpu_sections.videos import Videos

REPORT_NAME = "gpu_report"
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "triton",
    "numba",
    "numpy",
    "msgspec",
    "flash-attn",
    "flash-attn-3",
    "xformers",
)


@dataclass(frozen=True)
class Part:
    """A section before it is measured. share: its part of the time that is left, in shares."""

    title: str
    share: float
    cases: Callable[[], Iterator[Case]]


def parts(setup: Setup) -> dict[str, Part]:
    """All sections by name, in the order in which they are measured."""
    peaks, engines = Peaks(), Engines(setup)
    return {
        "peaks": Part("The device", 0.5, lambda: peaks.cases(setup)),
        "parity": Part("Kernels against their references", 2, lambda: parity.cases(setup)),
        "decode": Part("Decoding K and V of one layer", 1, lambda: decoding.cases(setup, peaks)),
        "encode": Part("Storing K of one chunk of one layer", 1, lambda: encoding.cases(setup)),
        "step": Part("Steps of an engine", 3, lambda: Stepping(setup, engines).cases()),
        "attention": Part("Attention of one layer", 4, lambda: Attending(setup, peaks).cases()),
        "videos": Part("Whole videos", 4, lambda: Videos(setup, engines).cases()),
        "sanitize": Part("compute-sanitizer", 1, lambda: sanitizing.cases(setup)),
    }


def measure_report(setup: Setup, *, only: Sequence[str], minutes: float) -> dict[str, Any]:
    """The chosen sections; what one does not use of its time is left to those after it."""
    torch.manual_seed(0)
    deadline = time.monotonic() + 60 * minutes
    chosen = {name: part for name, part in parts(setup).items() if name in only}
    shares = sum(part.share for part in chosen.values())
    sections: list[Section] = []
    for name, part in chosen.items():
        left = max(deadline - time.monotonic(), 0)
        print(f"{part.title}: up to {left * part.share / shares:.0f} s", flush=True)
        seconds = left * part.share / shares
        section = run_section(name, part.title, part.cases(), seconds=seconds)
        print(
            f"  {len(section.rows)} measured, {len(section.left_out)} left out, "
            f"{len(section.failures)} failed, {section.seconds:.0f} s",
            flush=True,
        )
        sections.append(section)
        shares -= part.share
    return {"machine": machine(setup), "sections": [asdict(section) for section in sections]}


def machine(setup: Setup) -> dict[str, Any]:
    """What was measured, where and when."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "dtype": str(setup.dtype).removeprefix("torch."),
    }
    if setup.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setup.device)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": properties.total_memory / 1e9,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that is checked out, "+" for changes beside it; None without git."""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(REPOSITORY), *command],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")


def write_report(measured: dict[str, Any], folder: Path, *, dry_run: bool) -> None:
    """`gpu_report.json` and `gpu_report.md` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = {"dry_run": dry_run, **measured}
    path = folder / f"{REPORT_NAME}.json"
    path.write_text(json.dumps(measured, indent=1) + "\n")
    path.with_suffix(".md").write_text(as_markdown(measured))


def as_markdown(measured: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["# GPU report", ""]
    if measured["dry_run"]:
        lines += ["**A dry run on a CPU with tiny sizes: its times say nothing.**", ""]
    lines += _table([{"of": name, "is": value} for name, value in measured["machine"].items()])
    for section in measured["sections"]:
        lines += ["", f"## {section['title']}", ""]
        lines += _table(section["rows"]) if section["rows"] else ["Nothing was measured."]
        if section["left_out"]:
            lines += ["", "Left out:", ""]
            lines += [f"* {reason}" for reason in section["left_out"]]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    header = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return header + [
        f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
