"""How a segment's end becomes the next one's condition: through pixels."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from qvg_engine.models.family import Frames, VideoCodec
from qvg_engine.models.longcat.program import Reencode


@runtime_checkable
class EncodingCodec(VideoCodec, Protocol):
    """A video VAE that encodes, too."""

    def encode(self, frames: Frames, noise: Tensor | None = None) -> Tensor:
        """Latents [F, C, h, w], as the network takes them, of frames uint8 [T, H, W, 3].

        With `noise` of that shape they are a sample of the posterior, else its mode.
        """
        ...


def reencoder_for(codec: VideoCodec | None) -> Reencode | None:
    """Decode a segment, keep its last frames, encode those; None where no VAE encodes.

    The segment is decoded from its start, its condition included, so that the frames are those that
    are shown.
    """
    if not isinstance(codec, EncodingCodec):
        return None

    def reencode(latents: Tensor, wanted: int, noise: Tensor) -> Tensor:
        frames, _ = codec.decode_chunk(latents, None)
        return codec.encode(frames[-pixel_frames(codec, wanted) :], noise)

    return reencode


def pixel_frames(codec: VideoCodec, latent_frames: int) -> int:
    """The most pixel frames that so many latent frames stand for: 13 of Wan's 4."""
    most = 1
    while codec.latent_frames(most + 1) <= latent_frames:
        most += 1
    return most
