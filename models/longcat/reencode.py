"""How a segment's end becomes the next one's condition: through pixels."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.models.family import DecoderState, VideoCodec
from qvg_engine.models.longcat.program import Reencode


@runtime_checkable
class EncodingCodec(Protocol):
    """A video VAE that encodes, too."""

    def decode_chunk(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As that of `VideoCodec`."""
        ...

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of the first `latent_frames` >= 1 of a video."""
        ...

    def encode(self, frames: NDArray[np.uint8]) -> Tensor:
        """Latents [F, C, h, w], as the network takes them, of frames uint8 [T, H, W, 3]."""
        ...


def reencoder_for(codec: VideoCodec | None) -> Reencode | None:
    """Decode a segment, keep its last frames, encode those; None where no VAE encodes.

    The segment is decoded from its condition on, so that the frames are those that are shown.
    """
    if not isinstance(codec, EncodingCodec):
        return None

    def reencode(latents: Tensor, wanted: int) -> Tensor:
        frames, _ = codec.decode_chunk(latents, None)
        last = frames[-codec.pixel_frames(wanted) :]
        return codec.encode(last.cpu().numpy())

    return reencode
