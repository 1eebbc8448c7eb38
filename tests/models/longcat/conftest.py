"""Reference cases of LongCat-Video: checkpoints with what the original computed from them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.models.longcat.conditions import LongCatConditions

REPOSITORY = Path(__file__).resolve().parents[3]
FIXTURES = Path(os.environ.get("QVG_FIXTURES", REPOSITORY.parent / "shared" / "fixtures"))


@dataclass(frozen=True)
class Case:
    """A folder with a checkpoint, `info.json` and `reference.safetensors`."""

    folder: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def num_calls(self) -> int:
        return int(self.info["calls"])

    @property
    def guided(self) -> bool:
        return float(self.info["guidance_scale"]) > 1

    def engine(self, **overrides: Any) -> VideoEngine:
        given: dict[str, Any] = {
            "model": str(self.folder),
            "latent_shape": tuple(self.tensors["noise"].shape[i] for i in (1, 3, 4)),
            "kv_format": "dense",
            "kv_memory": 8 * 1024**2,
            "device": "cpu",
            **overrides,
        }
        return VideoEngine(EngineConfig(**given))

    def conditions(self, **overrides: Any) -> LongCatConditions:
        given: dict[str, Any] = {
            "guidance": self.info["guidance_scale"],
            "schedule": "distilled" if self.info["use_distill"] else "standard",
            "num_steps": self.info["steps_asked"],
            "enhance_hf": self.info["enhance_hf"],
            "prompt_mask": self.tensors["prompt_mask"][0],
        }
        if self.guided:
            given["negative_prompt_embeds"] = self.tensors["negative_embeds"][0, 0]
            given["negative_mask"] = self.tensors["negative_mask"][0]
        return LongCatConditions(**{**given, **overrides})

    def request(self, **fields: Any) -> VideoRequest:
        given = {
            "request_id": "case",
            "prompt_embeds": self.tensors["prompt_embeds"][0, 0],
            "noise": frames_first(self.tensors["noise"][0]),
            "context_latents": frames_first(self.tensors["cond"][0]),
            "conditions": self.conditions(),
            "output": "latents",
            "trace": True,
        }
        return VideoRequest(**{**given, **fields})


def frames_first(latents: Tensor) -> Tensor:
    """[C, F, h, w] -> [F, C, h, w], and back."""
    return latents.transpose(0, 1)


@pytest.fixture
def case(longcat_case: Path) -> Case:
    return Case(
        longcat_case,
        json.loads((longcat_case / "info.json").read_text()),
        load_file(longcat_case / "reference.safetensors"),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`longcat_case`: every case in QVG_FIXTURES."""
    if "longcat_case" in metafunc.fixturenames:
        folders = [path.parent for path in sorted((FIXTURES / "longcat").glob("*/info.json"))]
        absent = pytest.mark.skip(reason=f"no reference cases in {FIXTURES / 'longcat'}")
        listed = [pytest.param(folder, id=folder.name) for folder in folders]
        metafunc.parametrize(
            "longcat_case", listed or [pytest.param(FIXTURES, id="fixtures", marks=absent)]
        )
