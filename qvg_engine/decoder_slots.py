"""The pool of decoder states.

A causal VAE keeps features of what it has decoded, one state a video. The pool bounds how many
live at once; admission counts the places, so a stream that runs always finds one. Beside the slots
on the device there may be places in host memory: the state that was used longest ago waits there,
and comes back when its stream's next chunk is decoded.
"""

from torch import Tensor

from qvg_engine.models.family import DecoderState, VideoCodec


class DecoderSlots:
    """`num_slots` decoder states of one codec on its device and `num_spilled` on the host."""

    def __init__(self, codec: VideoCodec | None, num_slots: int, num_spilled: int = 0) -> None:
        self._codec = codec
        self.num_slots = num_slots
        self.num_spilled = num_spilled
        # The state that was used last comes last.
        self._on_device: dict[str, DecoderState] = {}
        self._on_host: dict[str, DecoderState] = {}

    @property
    def num_used(self) -> int:
        """Places that a stream holds."""
        return len(self._on_device) + len(self._on_host)

    @property
    def num_bytes(self) -> int:
        """Bytes of the states in slots."""
        return sum(_state_bytes(state) for state in self._on_device.values())

    @property
    def num_spilled_bytes(self) -> int:
        """Bytes of the states that wait in host memory."""
        return sum(_state_bytes(state) for state in self._on_host.values())

    def acquire(self, request_id: str) -> None:
        """Give a stream a place for a new video."""
        assert self.num_used < self.num_slots + self.num_spilled, "more videos than places"
        assert not self._holds(request_id), f"{request_id!r} holds a place already"
        # Before its first chunk a video has no state, and so takes nothing.
        self._on_host[request_id] = None

    def decode(self, request_id: str, latents: Tensor) -> Tensor:
        """The frames of the next chunk of the stream's video, uint8 [T, H, W, 3]."""
        assert self._codec is not None
        assert self._holds(request_id), f"{request_id!r} holds no place"
        homes = (self._on_device, self._on_host)
        state = next(home.pop(request_id) for home in homes if request_id in home)
        self._spill(keep=self.num_slots - 1)
        if state is not None:
            state = tuple(part.to(latents.device, non_blocking=True) for part in state)
        frames, self._on_device[request_id] = self._codec.decode_chunk(latents, state)
        self._spill(keep=self.num_slots)
        return frames

    def restart(self, request_id: str) -> None:
        """Forget what a stream's decoder has seen."""
        assert self._holds(request_id), f"{request_id!r} holds no place"
        self.release(request_id)
        self._on_host[request_id] = None

    def release(self, request_id: str) -> None:
        """Take a stream's place back, if it has one."""
        self._on_device.pop(request_id, None)
        self._on_host.pop(request_id, None)

    def _holds(self, request_id: str) -> bool:
        return request_id in self._on_device or request_id in self._on_host

    def _spill(self, *, keep: int) -> None:
        """Move what was used longest ago to the host, until so many states are in slots."""
        while len(self._on_device) > max(0, keep):
            oldest = next(iter(self._on_device))
            state = self._on_device.pop(oldest)
            self._on_host[oldest] = None if state is None else tuple(part.cpu() for part in state)


def _state_bytes(state: DecoderState) -> int:
    return 0 if state is None else sum(tensor.nbytes for tensor in state)
