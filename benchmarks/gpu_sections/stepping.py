"""Steps of an engine around a randomly initialised Wan 1.3B, with full windows."""

import gc
import time
import warnings
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_sections.case import Case, OutOfTime, Row
from benchmarks.gpu_sections.pages import row_bytes
from benchmarks.gpu_sections.setup import PAGE_SIZE, Setup
from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.network import WanNetwork

FORMATS = ("dense", "bf16", "q2")
FRAMES_PER_CHUNK = 3
PASSES_PER_CHUNK = 5
MEASURED_CHUNKS = 4


class Stepping:
    """The cases of this section; the network is kept for all of them."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._network: WanNetwork | None = None
        self._dense_ms: dict[int, float] = {}

    def cases(self) -> Iterator[Case]:
        """Few streams first; for each number of them, the dense cache first."""
        for streams in self._setup.streams:
            for name in FORMATS:
                yield Case(
                    {"streams": streams, "format": name},
                    partial(self._measure, streams, name),
                )
        self._network = None

    def _measure(self, streams: int, name: str, left: float) -> Row:
        setup = self._setup
        deadline = time.monotonic() + left
        gc.collect()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        engine = self._make_engine(streams, name)
        self._fill(engine, streams, deadline)
        start = time.monotonic()
        waits = _steps_with_waits(engine, setup.device)
        chunk_s = time.monotonic() - start
        if MEASURED_CHUNKS * chunk_s > deadline - time.monotonic():
            raise OutOfTime(
                f"{MEASURED_CHUNKS} chunks would take {MEASURED_CHUNKS * chunk_s:.0f} s"
            )
        before = engine.stats().num_steps
        start = time.perf_counter()
        for _ in range(MEASURED_CHUNKS * PASSES_PER_CHUNK):
            engine.step()
        _wait(setup.device)
        seconds = time.perf_counter() - start
        stats = engine.stats()
        steps = stats.num_steps - before
        assert stats.num_running == streams, stats
        row: Row = {"ms a step": 1000 * seconds / steps, "steps": steps}
        if waits is not None:
            row["host waits a step"] = waits / PASSES_PER_CHUNK
        if setup.device.type == "cuda":
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        row |= {"kv_ratio": stats.kv_ratio, "total_ratio": stats.total_ratio}
        if name == "dense":
            self._dense_ms[streams] = row["ms a step"]
        if streams in self._dense_ms:
            row["to dense"] = row["ms a step"] / self._dense_ms[streams]
        return row

    def _make_engine(self, streams: int, name: str) -> VideoEngine:
        setup = self._setup
        rows, columns = setup.frame
        family = WanFamily(
            self._made_network(),
            RolloutSettings(
                latent_shape=(setup.wan.in_dim, *self._latent_size()),
                frames_per_chunk=FRAMES_PER_CHUNK,
                window_frames=setup.window_frames,
                text_len=setup.text_rows,
            ),
            name="random",
        )
        # A page more at each end of the window, and half as much again for codebooks.
        tokens = (setup.window_frames + FRAMES_PER_CHUNK) * rows * columns + 4 * PAGE_SIZE
        row = row_bytes("bf16" if name == "dense" else name, setup.wan.head_dim)
        row *= setup.dtype.itemsize // 2 if name == "dense" else 1
        bytes_per_token = 2 * setup.wan.num_layers * setup.wan.num_heads * row
        config = EngineConfig(
            kv_format=name,
            page_size=PAGE_SIZE,
            kv_memory=int(1.5 * streams * tokens * bytes_per_token),
            max_streams=streams,
            max_batch_tokens=max(65_536, streams * setup.chunk),
            device=setup.device.type,  # type: ignore[arg-type]
            dtype=str(setup.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        )
        return VideoEngine(config, family=family)

    def _made_network(self) -> WanNetwork:
        if self._network is None:
            torch.manual_seed(0)
            with torch.device(self._setup.device):
                network = WanNetwork(self._setup.wan)
            self._network = network.to(self._setup.dtype).eval().requires_grad_(False)
        return self._network

    def _latent_size(self) -> tuple[int, int]:
        _, p, q = self._setup.wan.patch_size
        return self._setup.frame[0] * p, self._setup.frame[1] * q

    def _fill(self, engine: VideoEngine, streams: int, deadline: float) -> None:
        """Streams whose window is full, all at the same pass of a chunk."""
        setup = self._setup
        latent = (setup.wan.in_dim, *self._latent_size())
        num_frames = FRAMES_PER_CHUNK * (MEASURED_CHUNKS + 10)
        for number in range(streams):
            engine.add_request(
                VideoRequest(
                    request_id=f"stream-{number}",
                    prompt_embeds=torch.randn(setup.text_rows // 2, setup.wan.text_dim),
                    noise=torch.randn(num_frames, *latent),
                    context_latents=torch.randn(setup.window_frames, *latent),
                    output="latents",
                    seed=number,
                )
            )
        finished: set[str] = set()
        while len(finished) < streams:
            finished |= {out.request_id for out in engine.step() if out.chunk_index is not None}
            if time.monotonic() > deadline:
                raise OutOfTime("the windows were not full in time")


def _steps_with_waits(engine: VideoEngine, device: torch.device) -> int | None:
    """One chunk's steps, and how often the host waited for the device in them; None on a CPU."""
    if device.type == "cpu":
        for _ in range(PASSES_PER_CHUNK):
            engine.step()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(PASSES_PER_CHUNK):
                engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _wait(device)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
