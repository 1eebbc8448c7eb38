"""A stand-in for the engine, so that the command line is tested without a model."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from qvg_engine.cli import make_videos
from qvg_engine.cli.app import main
from qvg_engine.config import EngineConfig
from qvg_engine.engine_stats import EngineStats
from qvg_engine.errors import CapacityError
from qvg_engine.output import VideoOutput
from qvg_engine.request import VideoRequest

CHUNK_FRAMES = 12
KNOWN_WORDS = frozenset(["a", "red", "green", "blue", "circle", "square", "over"])


class FakeEngine:
    """Makes grey frames of 64x64 pixels, twelve a step for every video.

    It runs `max_running` streams at a time. A prompt with "broken" fails in its second chunk, one
    with "endless" can never fit.
    """

    def __init__(self) -> None:
        self.config = EngineConfig()
        codec = SimpleNamespace(frames_per_second=16)
        self.family = SimpleNamespace(codec=codec, prompt_encoder=object())
        self.requests: list[VideoRequest] = []
        self.before_step: Callable[[int], None] = lambda step: None
        self.max_running = 16
        self.num_steps = 0
        self.aborted: list[str] = []
        self._running: dict[str, int] = {}

    def add_request(self, request: VideoRequest) -> tuple[str, ...]:
        assert request.prompt is not None
        if "endless" in request.prompt:
            raise CapacityError(f"{request.request_id} needs 900 pages of 600: ask for less")
        self.requests.append(request)
        self._running[request.request_id] = 0
        return tuple(word for word in request.prompt.split() if word not in KNOWN_WORDS)

    def abort_request(self, request_id: str) -> bool:
        self.aborted.append(request_id)
        return self._running.pop(request_id, None) is not None

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def step(self) -> list[VideoOutput]:
        self.before_step(self.num_steps)
        self.num_steps += 1
        by_id = {request.request_id: request for request in self.requests}
        return [self._advance(by_id[name]) for name in list(self._running)[: self.max_running]]

    def stats(self) -> EngineStats:
        return EngineStats(
            num_steps=self.num_steps,
            num_waiting=0,
            num_running=len(self._running),
            mean_streams_per_step=2.0,
            pages_used=12,
            pages_total=100,
            kv_ratio_now=1.5,
            kv_bytes_peak=1000,
            kv_bytes_bf16=2000,
            kv_ratio=2.0,
            total_ratio=1.25,
            codebook_bytes=0,
            refinement_bytes=0,
            workspace_bytes=600,
            text_bytes=0,
            decoder_bytes=0,
        )

    def _advance(self, request: VideoRequest) -> VideoOutput:
        assert request.num_frames is not None
        assert request.prompt is not None
        name, made = request.request_id, self._running[request.request_id]
        if "broken" in request.prompt and made:
            del self._running[name]
            return VideoOutput(
                request_id=name, finished=True, finish_reason="error", error="NaN in its latents"
            )
        count = min(CHUNK_FRAMES, request.num_frames - made)
        self._running[name] = made + count
        finished = made + count == request.num_frames
        if finished:
            del self._running[name]
        return VideoOutput(
            request_id=name,
            chunk_index=made // CHUNK_FRAMES,
            frames=np.full((count, 64, 64, 3), 100 + made % 50, dtype=np.uint8),
            finished=finished,
            finish_reason="length" if finished else None,
        )


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


CommandLine = Callable[..., Result]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that `generate` gets instead of a real one."""
    fake = FakeEngine()
    monkeypatch.setattr(make_videos, "open_engine", lambda config, *, prompt, family=None: fake)
    return fake


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Runs the command line in `tmp_path` with the given arguments."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        code = main(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
