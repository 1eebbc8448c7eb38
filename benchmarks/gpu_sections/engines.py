"""Engines around one randomly initialised Wan, which all of them share."""

import gc

import torch

from benchmarks.gpu_sections.case import NotThere
from benchmarks.gpu_sections.pages import codec_of, row_bytes
from benchmarks.gpu_sections.setup import PAGE_SIZE, Setup
from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.errors import ConfigError
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.network import WanNetwork

FRAMES_PER_CHUNK = 3
PASSES_PER_CHUNK = 5
# Beside the tokens: padding of pages, and in coded formats codebooks and refinements.
_PLAIN_ROOM, _CODED_ROOM = 1.05, 1.5


class Engines:
    """Makes engines; the network is made for the first of them, and kept until `forget`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._network: WanNetwork | None = None

    def forget(self) -> None:
        """Free the network."""
        self._network = None

    def make(
        self, streams: int, name: str, *, frames: int, window_frames: int | None
    ) -> VideoEngine:
        """An engine with pages of this format for `streams` of at most `frames` latent frames.

        window_frames: None for the full history. Raises `NotThere` if there is no room for it.
        """
        setup = self._setup
        gc.collect()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        family = WanFamily(
            self._made_network(),
            RolloutSettings(
                latent_shape=self.latent_shape,
                frames_per_chunk=FRAMES_PER_CHUNK,
                window_frames=window_frames,
                text_len=setup.text_rows,
            ),
            name="random",
        )
        kept = frames if window_frames is None else min(frames, window_frames + FRAMES_PER_CHUNK)
        config = EngineConfig(
            kv_format=name,
            page_size=PAGE_SIZE,
            kv_memory=self.page_bytes(streams, name, frames=kept),
            max_streams=streams,
            max_batch_tokens=max(65_536, streams * setup.chunk),
            device=setup.device.type,  # type: ignore[arg-type]
            dtype=str(setup.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        )
        try:
            return VideoEngine(config, family=family)
        except ConfigError as error:
            raise NotThere(str(error)) from error

    def page_bytes(self, streams: int, name: str, *, frames: int) -> int:
        """What pages for so many latent frames of each stream take."""
        setup = self._setup
        rows, columns = setup.frame
        # A page more at each end of sink and window.
        tokens = frames * rows * columns + 4 * PAGE_SIZE
        row = row_bytes("bf16" if name == "dense" else name, setup.wan.head_dim)
        row *= setup.dtype.itemsize // 2 if name == "dense" else 1
        room = _PLAIN_ROOM if codec_of(name, setup.wan.head_dim) is None else _CODED_ROOM
        per_token = 2 * setup.wan.num_layers * setup.wan.num_heads * row
        return int(room * streams * tokens * per_token)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame."""
        _, p, q = self._setup.wan.patch_size
        return (self._setup.wan.in_dim, self._setup.frame[0] * p, self._setup.frame[1] * q)

    def request(self, number: int, *, frames: int, context_frames: int = 0) -> VideoRequest:
        """A video of so many latent frames after those of its context."""
        setup = self._setup
        context = torch.randn(context_frames, *self.latent_shape) if context_frames else None
        return VideoRequest(
            request_id=f"stream-{number}",
            prompt_embeds=torch.randn(setup.text_rows // 2, setup.wan.text_dim),
            noise=torch.randn(frames, *self.latent_shape),
            context_latents=context,
            output="latents",
            seed=number,
        )

    def _made_network(self) -> WanNetwork:
        if self._network is None:
            torch.manual_seed(0)
            with torch.device(self._setup.device):
                network = WanNetwork(self._setup.wan)
            self._network = network.to(self._setup.dtype).eval().requires_grad_(False)
        return self._network


def wait(device: torch.device) -> None:
    """Until the device has done all that was given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
