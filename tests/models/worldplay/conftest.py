"""The reference cases of WorldPlay, and how a run is compared with them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine, VideoOutput, VideoRequest
from qvg_engine.models.program import PassInputs
from qvg_engine.models.worldplay.passes import WorldPlayRecord
from qvg_engine.output import Trace
from tests.conftest import FIXTURES

FLOW_BAR = 2e-4
CACHE_BAR = 5e-4
TEXT_BAR = 2e-5


@dataclass(frozen=True)
class WorldPlayCase:
    """One case: where its model lies, its settings, and what the original computed."""

    folder: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    def frames(self, name: str) -> Tensor:
        """A tensor [1, C, F, h, w] as [F, C, h, w]."""
        return self.tensors[name][0].transpose(0, 1)

    def memory(self, chunk: int) -> list[int]:
        """The frames that a chunk remembers."""
        frames: list[int] = self.tensors[f"memory.c{chunk}"].tolist()
        return frames


@pytest.fixture
def worldplay_case(request: pytest.FixtureRequest) -> WorldPlayCase:
    """The case whose name is the parameter; skips where it is not on disk."""
    folder = FIXTURES / "worldplay" / request.param
    if not folder.is_dir():
        pytest.skip(f"no reference case in {folder}")
    return WorldPlayCase(
        folder=folder,
        info=json.loads((folder / "info.json").read_text()),
        tensors=load_file(folder / "reference.safetensors"),
    )


@dataclass
class Recorded:
    """What a traced request gave, and the passes that its network was fed."""

    latents: Tensor
    trace: Trace
    inputs: list[PassInputs]


def run_recorded(
    family: Any, request: VideoRequest, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> Recorded:
    """Run one request to its end through the engine."""
    inputs: list[PassInputs] = []
    forward = family.forward

    def record(passes: Any, attention: Any, **options: Any) -> Any:
        inputs.extend(passes)
        return forward(passes, attention, **options)

    monkeypatch.setattr(family, "forward", record)
    given = {"kv_format": "dense", "kv_memory": 64 * 1024**2, "workspace_tokens": 512, **config}
    engine = VideoEngine(EngineConfig(device="cpu", **given), family=family)
    engine.add_request(request)
    outputs: list[VideoOutput] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        engine.check_integrity()
    assert outputs[-1].finish_reason == "length", outputs[-1].error
    assert outputs[-1].trace is not None
    latents = torch.cat([item.latents for item in outputs if item.latents is not None])
    return Recorded(latents, outputs[-1].trace, inputs)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max())


def check_passes(recorded: Recorded, case: WorldPlayCase) -> None:
    """Every denoising pass's input and output, and the last memory pass's input."""
    seen = 0
    memory: dict[int, Tensor] = {}
    for record, item in zip(recorded.trace.passes, recorded.inputs, strict=True):
        assert isinstance(record, WorldPlayRecord)
        if record.step is None:
            memory[record.chunk_index] = item.latents
            frames = case.info["memory"][f"c{record.chunk_index}"]
            assert list(record.frames) == frames == case.memory(record.chunk_index)
            continue
        place = f"c{record.chunk_index}.s{record.step}"
        assert largest_difference(item.latents, case.frames(f"in.{place}")) <= FLOW_BAR, place
        assert largest_difference(record.flow, case.frames(f"out.{place}")) <= FLOW_BAR, place
        seen += 1
    assert seen == case.info["chunks"] * case.info["steps"]
    assert len(memory) == len(case.info["memory"])
    last = max(memory)
    assert largest_difference(memory[last], case.frames(f"mem_in.c{last}")) <= FLOW_BAR
    assert largest_difference(recorded.latents, case.frames("latents")) <= FLOW_BAR
