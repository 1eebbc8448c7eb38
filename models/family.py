"""What a model family gives the engine: a network to step, programs, and the codecs around it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.format import CacheGeometry
from qvg_engine.models.attention import EngineAttention
from qvg_engine.models.program import PassInputs, Program, StreamInputs
from qvg_engine.models.rollout import RolloutSettings

DecoderState = tuple[Tensor, ...] | None
Frames = NDArray[np.uint8]


class VideoCodec(Protocol):
    """A causal video VAE that decodes chunk by chunk; frames are uint8 [T, H, W, 3].

    A state may be moved to other devices and back between two calls.
    """

    latent_channels: int
    spatial_factor: int
    frames_per_second: int

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames that cover `num_frames` pixel frames."""
        ...

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of the first `latent_frames` >= 1 of a video."""
        ...

    def encodable_frames(self, num_frames: int) -> int:
        """The most pixel frames, up to `num_frames` >= 1, that `encode` takes; 0 for none."""
        ...

    def encode(self, frames: Frames) -> Tensor:
        """Latents [F, C, h, w] of a video's frames; RequestError for sizes that do not divide."""
        ...

    def state_bytes(self, height: int, width: int) -> int:
        """Bytes of a stream's decoder state at a latent size."""
        ...

    def decode_chunk(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode [F, C, h, w] after what `state` has seen; None starts a video.

        The frames stay on the codec's device, and the host does not wait for them.
        """
        ...


@runtime_checkable
class GrowingCodec(Protocol):
    """A codec whose decoder states grow with a video's length."""

    def state_bytes_after(self, height: int, width: int, latent_frames: int) -> int:
        """Bytes of a stream's decoder state after so many latent frames."""
        ...


class PromptEncoder(Protocol):
    """Turns a prompt into text rows."""

    def encode(self, prompt: str) -> tuple[Tensor, tuple[str, ...]]:
        """Rows [L, text_dim] and the words that are unknown; RequestError for no text."""
        ...


class ModelFamily(Protocol):
    """A network with everything that turns requests into passes and latents into frames."""

    @property
    def name(self) -> str: ...

    @property
    def geometry(self) -> CacheGeometry: ...

    @property
    def settings(self) -> RolloutSettings: ...

    @property
    def text_dim(self) -> int: ...

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a latent frame of the settings' `latent_shape`."""
        ...

    @property
    def codec(self) -> VideoCodec | None: ...

    @property
    def prompt_encoder(self) -> PromptEncoder | None: ...

    @property
    def conditions_type(self) -> type[msgspec.Struct]: ...

    def open(self, inputs: StreamInputs, *, page_size: int) -> Program:
        """Start a program; RequestError if the inputs do not suit the family."""
        ...

    def forward(
        self, passes: Sequence[PassInputs], attention: EngineAttention, *, batch_invariant: bool
    ) -> list[Tensor]:
        """One forward for all passes; returns the flow [F, C, h, w] of each."""
        ...

    def text_keys_values(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention K and V of text rows [L, text_dim], a pair of [L, H, D] a layer."""
        ...

    def published_keys(self, keys: Tensor) -> Tensor:
        """Self-attention keys [..., head_dim] in the original channel order."""
        ...


@runtime_checkable
class JointTextFamily(Protocol):
    """A family that attends to text together with its cached tokens, so its keys are alike."""

    def published_text_keys(self, keys: Tensor) -> Tensor:
        """Text keys [..., head_dim] in the original channel order."""
        ...
