"""What many tests share: a toy network, an engine around it, and the reference cases."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine, VideoOutput, VideoRequest
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.network import WanNetwork

if not torch.cuda.is_available():
    # Read when a module with Triton kernels is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
SHIPPED_CASES = REPOSITORY / "tests" / "data"
FIXTURES = Path(os.environ.get("QVG_FIXTURES", REPOSITORY.parent / "shared" / "fixtures"))

TOY_CONFIG = WanConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_dim=8, freq_dim=16
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Toy tensors gain nothing from more threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_network(seed: int = 0, config: WanConfig = TOY_CONFIG) -> WanNetwork:
    generator = torch.Generator().manual_seed(seed)
    network = WanNetwork(config)
    for name, parameter in network.named_parameters():
        scale = 0.5 if "modulation" in name else 0.3 if parameter.ndim == 1 else None
        spread = scale or parameter[0].numel() ** -0.5
        with torch.no_grad():
            drawn = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(
                drawn + (1.0 if name.endswith(("norm_q.weight", "norm_k.weight")) else 0)
            )
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Toy:
    """A toy family and the means to make engines and requests for it."""

    network: WanNetwork

    def family(self, **settings: Any) -> WanFamily:
        given = {"latent_shape": (4, 4, 6), "text_len": 6, **settings}
        return WanFamily(self.network, RolloutSettings(**given))

    def engine(self, *, settings: dict[str, Any] | None = None, **config: Any) -> VideoEngine:
        given = {
            "kv_format": "dense",
            "page_size": 4,
            "kv_memory": 2 * 1024**2,
            "device": "cpu",
            "workspace_tokens": 64,
            **config,
        }
        return VideoEngine(EngineConfig(**given), family=self.family(**(settings or {})))

    def request(
        self, request_id: str, *, chunks: int = 3, size: tuple[int, int] = (4, 6), **fields: Any
    ) -> VideoRequest:
        generator = torch.Generator().manual_seed(sum(map(ord, request_id)))
        given = {
            "prompt_embeds": torch.randn(3, 8, generator=generator),
            "noise": torch.randn(3 * chunks, 4, *size, generator=generator),
            "output": "latents",
            **fields,
        }
        return VideoRequest(request_id=request_id, **given)


@pytest.fixture
def toy() -> Toy:
    return Toy(make_network())


@dataclass
class Collected:
    """The outputs of some requests."""

    outputs: dict[str, list[VideoOutput]]

    def latents(self, request_id: str) -> Tensor:
        chunks = [item.latents for item in self.outputs[request_id] if item.latents is not None]
        return torch.cat(chunks)

    def last(self, request_id: str) -> VideoOutput:
        return self.outputs[request_id][-1]


@pytest.fixture
def run() -> Callable[..., Collected]:
    """Add requests, step to the end with the engine's integrity checked on the way."""

    def run_to_end(engine: VideoEngine, *requests: VideoRequest) -> Collected:
        for request in requests:
            engine.add_request(request)
        outputs: dict[str, list[VideoOutput]] = {}
        for _ in range(10_000):
            if not engine.has_unfinished_requests():
                break
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
            engine.check_integrity()
        assert not engine.has_unfinished_requests(), "the engine does not come to an end"
        return Collected(outputs)

    return run_to_end


@dataclass(frozen=True)
class Case:
    """A reference case: settings, weights file, and what the original implementation computed."""

    name: str
    weights: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def renoise(self) -> Tensor:
        chunks, steps = self.config["chunks"], len(self.config["denoising_step_list"])
        rows = [
            torch.stack([self.tensors[f"renoise.c{chunk}.s{step}"] for step in range(steps - 1)])
            for chunk in range(chunks)
        ]
        return torch.stack(rows)

    def engine(self, **overrides: Any) -> VideoEngine:
        local = self.config["local_attn_size"]
        shape = self.tensors["noise"].shape
        given: dict[str, Any] = {
            "model": str(self.weights),
            "latent_shape": tuple(shape[2:]),
            "frames_per_chunk": self.config["frames_per_chunk"],
            "window_frames": None if local == -1 else local,
            "sink_frames": self.config["sink_size"],
            "timesteps": tuple(float(t) for t in self.config["denoising_step_list"]),
            "shift": self.config["timestep_shift"],
            "text_len": self.config["model"]["text_len"],
            "num_heads": self.config["model"]["num_heads"],
            "kv_format": "dense",
            "kv_memory": 64 * 1024**2,
            "workspace_tokens": 512,
            "device": "cpu",
            **overrides,
        }
        return VideoEngine(EngineConfig(**given))

    def request(self, **fields: Any) -> VideoRequest:
        given = {
            "request_id": self.name,
            "prompt_embeds": self.tensors["prompt_embeds"][0],
            "noise": self.tensors["noise"][0],
            "renoise": self.renoise,
            "output": "latents",
            "trace": True,
            **fields,
        }
        return VideoRequest(**given)


def load_case(config_path: Path) -> Case:
    name = config_path.name.removesuffix(".config.json")
    return Case(
        name=name,
        weights=config_path.with_name(f"{name}.generator.pt"),
        config=json.loads(config_path.read_text()),
        tensors=load_file(config_path.with_name(f"{name}.reference.safetensors")),
    )


@pytest.fixture
def shipped_case() -> Case:
    return load_case(SHIPPED_CASES / "selfforcing" / "full.config.json")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case_path`: the shipped reference case, and every one in QVG_FIXTURES."""
    if "case_path" in metafunc.fixturenames:
        shipped = sorted((SHIPPED_CASES / "selfforcing").glob("*.config.json"))
        more = sorted((FIXTURES / "selfforcing").glob("*.config.json"))
        marks = [] if more else [pytest.mark.skip(reason=f"no reference cases in {FIXTURES}")]
        listed = [pytest.param(path, id=f"shipped-{path.name}") for path in shipped]
        listed += [pytest.param(path, id=f"fixtures-{path.name}") for path in more] or [
            pytest.param(FIXTURES, id="fixtures", marks=marks)
        ]
        metafunc.parametrize("case_path", listed)


@pytest.fixture
def case(case_path: Path) -> Case:
    return load_case(case_path)
