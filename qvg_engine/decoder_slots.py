"""The pool of decoder states.

A causal VAE keeps features of what it has decoded, one state a video. The pool bounds how many
live at once; admission counts the slots, so a stream that runs always finds one.
"""

from torch import Tensor

from qvg_engine.models.family import DecoderState, VideoCodec


class DecoderSlots:
    """`num_slots` decoder states of one codec, by request."""

    def __init__(self, codec: VideoCodec | None, num_slots: int) -> None:
        self._codec = codec
        self.num_slots = num_slots
        self._states: dict[str, DecoderState] = {}

    @property
    def num_used(self) -> int:
        """Slots that a stream holds."""
        return len(self._states)

    @property
    def num_bytes(self) -> int:
        """Bytes of the states that are held."""
        states = (state for state in self._states.values() if state is not None)
        return sum(tensor.nbytes for state in states for tensor in state)

    def acquire(self, request_id: str) -> None:
        """Give a stream a slot for a new video."""
        assert self.num_used < self.num_slots, "admission let in more videos than slots"
        assert request_id not in self._states, f"{request_id!r} holds a slot already"
        self._states[request_id] = None

    def decode(self, request_id: str, latents: Tensor) -> Tensor:
        """The frames of the next chunk of the stream's video, uint8 [T, H, W, 3]."""
        assert self._codec is not None
        frames, self._states[request_id] = self._codec.decode_chunk(
            latents, self._states[request_id]
        )
        return frames

    def release(self, request_id: str) -> None:
        """Take a stream's slot back, if it has one."""
        self._states.pop(request_id, None)
