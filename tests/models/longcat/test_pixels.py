"""Videos with a VAE: segments that continue from pixels, and the frames that are shown."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.models.family import DecoderState
from qvg_engine.models.longcat.reference import ReferenceSettings, rollout
from qvg_engine.plan import plan_capacity
from tests.models.longcat.toy import (
    TEXT_LEN,
    make_engine,
    make_family,
    make_network,
    make_request,
    negative_of,
    padded,
)

LEVELS = 40.0


class CoarseCodec:
    """A causal codec of 2 pixel frames a latent frame, but 1 for the first; it loses much.

    What is shown of a frame is the sum of all latents so far, so a decoder that starts at another
    place shows something else.
    """

    latent_channels = 4
    spatial_factor = 1
    frames_per_second = 8

    def latent_frames(self, num_frames: int) -> int:
        return 1 + num_frames // 2

    def pixel_frames(self, latent_frames: int) -> int:
        return 2 * latent_frames - 1

    def state_bytes(self, height: int, width: int) -> int:
        return height * width * 4

    def decode_chunk(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        before = torch.zeros_like(latents[:1]) if state is None else state[0]
        sums = before + latents.cumsum(0)
        pixels = (sums[:, :3] * 10 + 128).round().clamp(0, 255).to(torch.uint8)
        repeats = torch.full((len(latents),), 2)
        repeats[0] = 1 if state is None else 2
        frames = pixels.repeat_interleave(repeats, dim=0).permute(0, 2, 3, 1)
        return frames, (sums[-1:],)

    def encode(self, frames: NDArray[np.uint8]) -> Tensor:
        assert len(frames) % 2 == 1
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        picked = torch.cat([pixels[:1], pixels[2::2]])
        latents = (picked - 128) / LEVELS
        return torch.cat([latents, latents[:, :1]], dim=1)


class PlainCodec:
    """The same without a way back."""

    latent_channels = 4
    spatial_factor = 1
    frames_per_second = 8
    latent_frames = CoarseCodec.latent_frames
    state_bytes = CoarseCodec.state_bytes
    decode_chunk = CoarseCodec.decode_chunk


def sigmas() -> list[float]:
    return [12 * u / (1 + 11 * u) for u in (1.0, 0.5005, 0.001)] + [0.0]


def reencoded(latents: Tensor, wanted: int) -> Tensor:
    codec = CoarseCodec()
    frames, _ = codec.decode_chunk(latents, None)
    return codec.encode(frames[-codec.pixel_frames(wanted) :].numpy())


def expected_latents(request: Any, segments: list[tuple[int, int]]) -> list[Tensor]:
    network = make_network()
    return rollout(
        network,
        noise=request.noise,
        context=request.context_latents,
        prompts=[padded(network, request.prompt_embeds, TEXT_LEN)] * len(segments),
        negative=padded(network, negative_of(request), TEXT_LEN),
        settings=ReferenceSettings(
            segments=segments,
            sigmas=[sigmas()] * len(segments),
            guidance=4.0,
            reencode=reencoded,
        ),
    )


def test_segments_continue_from_pixels(run: Any) -> None:
    segments = [(0, 5), (2, 3), (2, 2)]
    request = make_request("a", frames=10, context=0, conditions={"condition_frames": 2})
    expected = expected_latents(request, segments)
    collected = run(make_engine(make_family(codec=CoarseCodec())), request)
    assert float((collected.latents("a") - torch.cat(expected)).abs().max()) <= 1e-4
    # From the latents as they are it is another video.
    conditions = {"condition_frames": 2, "continue_from": "latents"}
    other = make_request("a", frames=10, context=0, conditions=conditions)
    latents = run(make_engine(make_family(codec=CoarseCodec())), other).latents("a")
    assert torch.equal(latents[:5], collected.latents("a")[:5])
    assert float((latents - collected.latents("a")).abs().max()) > 0.05
    without = run(make_engine(make_family()), request).latents("a")
    assert torch.equal(without, latents)


@pytest.mark.parametrize("context", [0, 2])
def test_a_segment_is_shown_behind_its_condition(run: Any, context: int) -> None:
    """Every segment is decoded from its condition on, whose frames are not shown again."""
    segments = [(2, 3), (2, 3), (2, 1)] if context else [(0, 5), (2, 2)]
    request = make_request(
        "a", frames=7, context=context, conditions={"condition_frames": 2}, output="video"
    )
    videos = expected_latents(request, segments)
    codec = CoarseCodec()
    condition = torch.empty(0, 4, 4, 6) if not context else request.context_latents
    frames = []
    for index, latents in enumerate(videos):
        assert condition is not None
        whole = torch.cat([condition, latents])
        shown, _ = codec.decode_chunk(whole, None)
        hidden = codec.pixel_frames(len(condition)) if len(condition) else 0
        frames.append(shown[hidden:].numpy())
        if index + 1 < len(videos):
            condition = reencoded(whole, segments[index + 1][0])
    engine = make_engine(make_family(codec=CoarseCodec()), decoder_slots=1)
    collected = run(engine, request)
    made = [item.frames for item in collected.outputs["a"] if item.frames is not None]
    assert [len(part) for part in made] == [len(part) for part in frames]
    difference = np.concatenate(made).astype(int) - np.concatenate(frames).astype(int)
    # A sum that lies between two levels may round either way.
    assert np.abs(difference).max() <= 1


def test_other_streams_go_on_while_one_is_encoded(run: Any) -> None:
    engine = make_engine(make_family(codec=CoarseCodec()))
    requests = [make_request("a", frames=6, context=2), make_request("b", frames=3, context=2)]
    collected = run(engine, *requests)
    assert [collected.last(name).finish_reason for name in "ab"] == ["length", "length"]
    # Two segments of 1 + 3 passes, and a step between them for the work outside.
    assert engine.stats().num_steps == 8


def test_pixels_need_a_vae_that_encodes() -> None:
    request = make_request("a", frames=6, conditions={"continue_from": "pixels"})
    for codec in (None, PlainCodec()):
        with pytest.raises(ValueError, match="no VAE here that encodes"):
            make_engine(make_family(codec=codec)).add_request(request)
    # Of one segment nothing is encoded.
    single = make_request("a", frames=3, conditions={"continue_from": "pixels"})
    make_engine(make_family()).add_request(single)


class LengthEncoder:
    """Rows that depend on the length of the prompt."""

    def encode(self, prompt: str) -> tuple[Tensor, tuple[str, ...]]:
        return torch.full((2, 8), len(prompt) / 100), ()


def test_videos_from_prompts() -> None:
    """A family with a VAE and a text encoder makes videos of as many frames as were asked for."""
    family = make_family(
        codec=CoarseCodec(), prompt_encoder=LengthEncoder(), segment_frames=2, distilled=True
    )
    engine = make_engine(family)
    plan = plan_capacity(engine.config, family, num_frames=16)
    assert plan.pages_per_stream == -(-4 * 6 // 4)
    assert plan.longest_frames is None
    videos = engine.generate(["rain on a roof", "a red car"], num_frames=16)
    # 9 latent frames: 6 of text alone, which stand for 11 pixel frames, 2 of 4, and 1 of 2.
    assert [video.frames.shape for video in videos] == [(16, 4, 6, 3)] * 2
    assert engine.stats().num_steps == 16 + 2 * (1 + 16)
    guided = make_family(codec=CoarseCodec(), prompt_encoder=LengthEncoder())
    # Both branches keep text.
    other = plan_capacity(engine.config, guided, num_frames=16)
    assert other.text_bytes_per_stream == 2 * plan.text_bytes_per_stream > 0


@pytest.mark.parametrize("kv_format", ["dense", "q2"])
def test_an_engine_that_does_not_wait_for_its_device(run: Any, kv_format: str) -> None:
    """A segment is decoded and encoded before what its last step brought is known."""
    latents = []
    for lags in (False, True):
        family = make_family(codec=CoarseCodec())
        settings = {"kv_format": kv_format, "codebook_overhead": 8.0, "batch_invariant": True}
        engine = make_engine(family, **settings)
        engine._lags = lags
        conditions = {"condition_frames": 2}
        requests = [
            make_request("a", frames=10, context=0, conditions=conditions),
            make_request("b", frames=7, conditions=conditions),
        ]
        collected = run(engine, *requests)
        assert all(collected.last(name).finish_reason == "length" for name in "ab")
        latents.append([collected.latents(name) for name in "ab"])
    for waiting, lagging in zip(*latents, strict=True):
        assert torch.equal(waiting, lagging)
