"""CausVid's long videos: every rollout is a video of its own that starts from an overlap."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine import VideoEngine
from qvg_engine.errors import ConfigError, RequestError
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.vae.wan import WanVaeCodec

SETTINGS = {"rollout_frames": 9, "overlap_frames": 3}


def with_codec(engine: VideoEngine, codec: Any) -> VideoEngine:
    family: Any = engine.family
    family.codec = engine._slots._codec = codec
    return engine


def renoise(chunks: int) -> Tensor:
    return torch.randn(chunks, 3, 3, 4, 4, 6, generator=torch.Generator().manual_seed(9))


def one_by_one(toy: Any, run: Any, codec: WanVaeCodec, request: Any) -> tuple[Tensor, Any]:
    """Latents and frames, rollout by rollout, each from a fresh engine."""
    latents, frames = [], []
    context, first_chunk = None, 0
    for chunks in (3, 2, 2):
        part = toy.request(
            "part",
            prompt_embeds=request.prompt_embeds,
            noise=request.noise[3 * first_chunk :][: 3 * chunks],
            renoise=request.renoise[first_chunk:][:chunks],
            context_latents=context,
        )
        made = run(toy.engine(), part).latents("part")
        first_chunk += chunks
        rollout = made if context is None else torch.cat([context, made])
        pixels, _ = codec.decode_chunk(rollout, None)
        latents.append(made)
        frames.append(pixels if context is None else pixels[codec.pixel_frames(3) :])
        # The frame at which the overlap begins, before its last eight.
        again = codec.encode(pixels[-9:-8].numpy())
        context = torch.cat([again, rollout[-2:]])
    return torch.cat(latents), np.concatenate(frames)


@pytest.mark.parametrize("output", ["latents", "video"])
def test_rollouts_follow_one_another(toy: Any, run: Any, wan_vae: Any, output: str) -> None:
    codec = WanVaeCodec(wan_vae)
    request = toy.request("a", chunks=7, renoise=renoise(7), output=output)
    engine = with_codec(toy.engine(settings=SETTINGS), codec)
    collected = run(engine, request)
    latents, frames = one_by_one(toy, run, codec, request)
    if output == "latents":
        assert float((collected.latents("a") - latents).abs().max()) <= 1e-3
    else:
        made = np.concatenate([item.frames for item in collected.outputs["a"]])
        assert made.shape == frames.shape == (81, 32, 48, 3)
        assert np.abs(made.astype(int) - frames).max() <= 2


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("context", [0, 1, 4])
def test_pages_are_those_of_the_longest_rollout(
    toy: Any, run: Any, wan_vae: Any, page_size: int, context: int
) -> None:
    latents = torch.zeros(context, 4, 4, 6) if context else None
    engine = toy.engine(settings=SETTINGS, page_size=page_size)
    with_codec(engine, WanVaeCodec(wan_vae))
    engine.add_request(toy.request("a", chunks=7, context_latents=latents))
    engine.step()
    reserved = engine._streams["a"].program.needs.pages
    most = 0
    while engine.has_unfinished_requests():
        for item in engine.step():
            assert item.error is None
        most = max(most, engine._cache.block_manager.num_used)
    assert most <= reserved <= most + 1


def test_a_switch_while_pixels_are_encoded(toy: Any, run: Any, wan_vae: Any) -> None:
    """The overlap is committed under the text that was given in the meantime."""
    new = torch.full((2, 8), 0.5)
    made = []
    for switch_after in (2, 3):
        engine = with_codec(toy.engine(settings=SETTINGS), WanVaeCodec(wan_vae))
        engine.add_request(toy.request("a", chunks=5, renoise=renoise(5)))
        latents: list[Tensor] = []
        while len(latents) < switch_after:
            latents += [item.latents for item in engine.step() if item.latents is not None]
        engine.update_request("a", prompt_embeds=new)
        made.append(torch.cat([*latents, run(engine).latents("a")]))
    assert not torch.allclose(made[0][6:9], made[1][6:9], atol=1e-3)
    assert bool(made[1].isfinite().all())


def test_others_go_on_meanwhile(toy: Any, run: Any, wan_vae: Any) -> None:
    codec = WanVaeCodec(wan_vae)
    requests = [toy.request(name, chunks=count) for name, count in (("a", 5), ("b", 3), ("c", 7))]
    together = run(with_codec(toy.engine(settings=SETTINGS), codec), *requests)
    for request in requests:
        alone = run(with_codec(toy.engine(settings=SETTINGS), codec), request)
        name = request.request_id
        assert float((together.latents(name) - alone.latents(name)).abs().max()) <= 1e-3


def test_what_cannot_be_rolled_out(toy: Any) -> None:
    engine = toy.engine(settings=SETTINGS)
    with pytest.raises(RequestError, match="there is no VAE here"):
        engine.add_request(toy.request("a", chunks=4))
    engine.add_request(toy.request("b", chunks=3))
    with pytest.raises(RequestError, match="give at most 6"):
        engine.add_request(toy.request("c", context_latents=torch.zeros(7, 4, 4, 6)))
    with pytest.raises(ConfigError, match="rollout_frames is 5: give at least 6"):
        RolloutSettings(latent_shape=(4, 4, 6), rollout_frames=5)
    with pytest.raises(ConfigError, match="overlap_frames is 0"):
        RolloutSettings(latent_shape=(4, 4, 6), overlap_frames=0)
