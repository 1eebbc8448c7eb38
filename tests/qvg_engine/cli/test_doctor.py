import importlib.metadata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from qvg_engine.cli import examine, installed, kernel_checks
from qvg_engine.cli.installed import list_installed
from qvg_engine.cli.kernel_checks import check_kernels
from qvg_engine.cli.memory import list_memory
from qvg_engine.cli.plan_text import describe_plan
from qvg_engine.config import EngineConfig
from qvg_engine.kernels.paged_attention import Strategy, paged_attention
from qvg_engine.plan import CapacityPlan

CommandLine = Callable[..., Any]

PLAN = CapacityPlan(
    num_frames=960,
    num_pages=600,
    page_bytes=2**20,
    codebook_bytes=0,
    refinement_bytes=0,
    pages_per_stream=144,
    kv_bytes_per_stream=144 * 2**20,
    workspace_bytes=5 * 2**20,
    decoder_bytes_per_stream=2**20,
    text_bytes_per_stream=2**20,
    num_streams=4,
    longest_frames=None,
)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineConfig, int]]:
    """What `doctor` asks to be planned; the answer is always PLAN."""
    asked = []

    def plan_capacity(config: EngineConfig, family: Any, *, num_frames: int) -> CapacityPlan:
        asked.append((config, num_frames))
        return PLAN

    family = SimpleNamespace(name="pocket", codec=SimpleNamespace(frames_per_second=16))
    monkeypatch.setattr(examine, "load_video_family", lambda config, **options: family)
    monkeypatch.setattr(examine, "plan_capacity", plan_capacity)
    monkeypatch.setattr(
        examine, "describe_attention", lambda config, _: [("strategy", config.attention_backend)]
    )
    return asked


def test_doctor_shows_every_part(cli: CommandLine, planned: list[tuple[EngineConfig, int]]) -> None:
    options = "--seconds 60 --kv-memory 64MiB --max-streams 3 --dtype float16"
    result = cli("doctor", *options.split(), "--attention-backend", "fused")
    assert (result.code, result.err) == (0, "")
    for part in (
        "torch",
        "not installed; it would bring",
        "agrees with plain torch",
        "host",
        "144",
        "fused",
    ):
        assert part in result.out
    ((config, num_frames),) = planned
    assert (config.kv_memory, config.max_streams, num_frames) == (64 * 2**20, 3, 960)
    assert config.dtype == "float16"


def test_doctor_says_when_a_kernel_fails(
    cli: CommandLine,
    planned: list[tuple[EngineConfig, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError("libomp.so: cannot open\nshared object file")

    monkeypatch.setattr(kernel_checks, "paged_attention", fail)
    result = cli("doctor")
    assert result.code == 2
    assert "fails: OSError: libomp.so: cannot open shared object file" in result.out


def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(*arguments: Any, strategy: Strategy, **named: Any) -> Any:
        offset = 0.01 if strategy == "workspace" else 0.0
        return paged_attention(*arguments, strategy=strategy, **named) + offset

    monkeypatch.setattr(kernel_checks, "paged_attention", skewed)
    assert all("differs from plain torch by 1.0e-02" in check.status for check in check_kernels())


def test_doctor_refuses_what_generate_refuses(cli: CommandLine) -> None:
    result = cli("doctor", "--kv-memory", "much")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: --kv-memory is 'much'")


def test_installed_versions_are_those_of_the_metadata() -> None:
    versions = {package.name: package.version for package in list_installed()}
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["av"] == importlib.metadata.version("av")


def test_a_package_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_PACKAGES", (("numba", "a_module_that_is_missing", "loops"),))
    _, package = list_installed()
    assert "does not load: ModuleNotFoundError" in package.status


def test_memory_is_plausible() -> None:
    host = list_memory()[0]
    assert 0 < host.free_bytes <= host.total_bytes


def test_a_plan_that_fits() -> None:
    rows = dict(describe_plan(PLAN, frames_per_second=16))
    assert rows["one video takes"].startswith("144 pages (144.0 MiB), and 2.0 MiB")
    assert rows["the engine takes"] == "600 pages (600.0 MiB), and 5.0 MiB of workspace"
    assert rows["at the same time"].startswith("4;")
    assert rows["longest video"].startswith("any length")


def test_a_plan_that_does_not_fit_says_what_would() -> None:
    plan = msgspec.structs.replace(PLAN, num_pages=100, num_streams=0, longest_frames=320)
    rows = dict(describe_plan(plan, frames_per_second=16))
    assert rows["at the same time"].startswith("not even one")
    assert "--kv-memory 144MiB" in rows["at the same time"]
    assert rows["longest video"] == "320 frames (20.0 s)"


def test_a_plan_counts_codebooks_and_refinements() -> None:
    plan = msgspec.structs.replace(
        PLAN,
        num_pages=100,
        num_streams=0,
        codebook_bytes=10 * 2**20,
        refinement_bytes=3 * 2**20,
        kv_bytes_per_stream=160 * 2**20,
    )
    rows = dict(describe_plan(plan, frames_per_second=16))
    assert rows["one video takes"].startswith("144 pages and what belongs to them (160.0 MiB)")
    assert "10.0 MiB of codebooks, 3.0 MiB of refinements" in rows["the engine takes"]
    assert "--kv-memory 160MiB" in rows["at the same time"]


def test_a_plan_without_a_decoder_slot_does_not_blame_the_pages() -> None:
    plan = msgspec.structs.replace(PLAN, num_streams=0)
    rows = dict(describe_plan(plan, frames_per_second=16))
    assert "--kv-memory" not in rows["at the same time"]
