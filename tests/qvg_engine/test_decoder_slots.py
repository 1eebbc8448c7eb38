"""Decoder states in slots and in host memory."""

from typing import Any

import numpy as np
import pytest
import torch

from qvg_engine import VideoRequest
from qvg_engine.decoder_slots import DecoderSlots


class CountingCodec:
    """Frames count on from the state, and say how many states are on the device."""

    latent_channels, spatial_factor, frames_per_second = 4, 1, 16
    slots: DecoderSlots

    def latent_frames(self, num_frames: int) -> int:
        return -(-num_frames // 4)

    def pixel_frames(self, latent_frames: int) -> int:
        return 4 * latent_frames

    def encodable_frames(self, num_frames: int) -> int:
        return num_frames // 4 * 4

    def encode(self, frames: Any) -> torch.Tensor:
        return torch.zeros(len(frames) // 4, 4, 4, 6)

    def state_bytes(self, height: int, width: int) -> int:
        return 16

    def decode_chunk(self, latents: torch.Tensor, state: Any) -> Any:
        count = 0 if state is None else int(state[0][0])
        numbers = np.arange(count, count + 4 * len(latents), dtype=np.uint8)
        frames = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 4, 6, 3))
        return torch.from_numpy(frames.copy()), (torch.tensor([count + len(numbers), 0]),)


@pytest.mark.parametrize("num_slots", [0, 1, 2])
def test_states_are_spilled_and_come_back(num_slots: int) -> None:
    slots = DecoderSlots(CountingCodec(), num_slots, num_spilled=3 - num_slots)
    names = ["a", "b", "c"]
    for name in names:
        slots.acquire(name)
    assert (slots.num_used, slots.num_bytes, slots.num_spilled_bytes) == (3, 0, 0)
    for start in (0, 4, 8):
        for name in names:
            frames = slots.decode(name, torch.zeros(1, 4, 4, 6))
            assert frames[:, 0, 0, 0].tolist() == list(range(start, start + 4))
            assert slots.num_bytes <= 16 * num_slots
    assert (slots.num_bytes, slots.num_spilled_bytes) == (16 * num_slots, 16 * (3 - num_slots))
    with pytest.raises(AssertionError, match="more videos than places"):
        slots.acquire("d")
    for name in names:
        slots.release(name)
    assert (slots.num_used, slots.num_bytes, slots.num_spilled_bytes) == (0, 0, 0)


def make_videos(toy: Any, run: Any, *, context: int = 0, **config: Any) -> dict[str, list[int]]:
    engine = toy.engine(**config)
    engine.family.codec = engine._slots._codec = CountingCodec()
    latents = torch.zeros(context, 4, 4, 6) if context else None
    requests = [
        VideoRequest(
            request_id=name,
            prompt_embeds=torch.ones(1, 8),
            num_frames=frames,
            context_latents=latents,
        )
        for name, frames in (("a", 30), ("b", 12), ("c", 24))
    ]
    outputs = run(engine, *requests).outputs
    return {
        name: [int(n) for item in items for n in item.frames[:, 0, 0, 0]]
        for name, items in outputs.items()
    }


@pytest.mark.parametrize("slots", [(3, 0), (1, 2), (1, 0), (0, 3)])
def test_videos_do_not_depend_on_where_states_wait(
    toy: Any, run: Any, slots: tuple[int, int]
) -> None:
    made = make_videos(toy, run, decoder_slots=slots[0], spilled_decoders=slots[1])
    assert made == {"a": list(range(30)), "b": list(range(12)), "c": list(range(24))}


def test_a_video_goes_on_after_its_context(toy: Any, run: Any) -> None:
    """The decoder has seen the context's five latent frames, whose frames are not given out."""
    made = make_videos(toy, run, context=5)
    assert made["a"] == list(range(20, 50))
