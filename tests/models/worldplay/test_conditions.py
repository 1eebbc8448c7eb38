"""What requests may say, and one clear line for what they may not."""

from typing import Any

import numpy as np
import pytest
import torch

from qvg_engine.errors import ConfigError, RequestError
from qvg_engine.models.worldplay.cameras import CameraPath
from qvg_engine.models.worldplay.conditions import WorldPlayConditions
from qvg_engine.models.worldplay.sampler import EulerSampler
from tests.models.worldplay.toy import (
    SHAPE,
    TEXT_DIM,
    make_engine,
    make_family,
    make_request,
    random,
)

STILL = CameraPath.standing_still(12)
NEGATIVE = torch.zeros(2, TEXT_DIM)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pose": "w-3", "cameras": STILL}, "either pose or cameras"),
        ({"negative_prompt": "x", "negative_prompt_embeds": NEGATIVE}, "either negative_prompt"),
        ({"guidance_scale": 0.5}, r"guidance_scale is 0\.5: give 1 to 100"),
        ({"actions": (0, 81)}, r"actions\[1\] is 81: give a whole number from 0 to 80"),
        ({"actions": (0.5,)}, r"actions\[0\] is 0\.5"),
        ({"image": np.zeros((4, 4, 3))}, r"image is float64 \[4, 4, 3\]: give uint8"),
        ({"image": "cat.png"}, "image is str"),
        (
            {"image": np.zeros((4, 4, 3), np.uint8), "image_latents": NEGATIVE},
            "either image or image_latents",
        ),
        ({"memory_points": torch.zeros(5)}, r"memory_points is \[5\]: give \[L, 3\]"),
        ({"memory_points": torch.zeros(0, 3)}, "memory_points has no rows"),
    ],
)
def test_wrong_conditions(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        WorldPlayConditions(**given)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("5b", {"pose": "w-3"}, "pose has 4 latent frames, the video 12"),
        ("8b", {"cameras": CameraPath.standing_still(13)}, "cameras has 13 latent frames"),
        ("8b", {"pose": "jump-11"}, "'jump-11'"),
        ("5b", {"actions": (0, 1)}, "actions has 2 labels, the video 12"),
        ("5b", {"image_latents": torch.zeros(2, *SHAPE)}, r"latents are \[2, 4, 2, 4\]"),
        (
            "8b",
            {"image": np.zeros((4, 4, 3), np.uint8), "image_latents": None},
            "no VAE here to encode it",
        ),
        ("5b", {"image_latents": torch.full((1, *SHAPE), torch.nan)}, "give finite"),
        ("5b", {"context_latents": random(0, 4, *SHAPE)}, "not both"),
        ("8b", {"context_latents": random(0, 3, *SHAPE)}, "give a multiple of frames_per_chunk"),
        ("5b", {"context_latents": random(0, 1, *SHAPE)}, "a first image goes to the conditions'"),
        ("5b", {"glyph_embeds": torch.zeros(1, 6)}, "the 5B takes none"),
        ("8b", {"glyph_embeds": torch.zeros(1, 5)}, r"glyph_embeds is \[1, 5\]: give \[L, 6\]"),
        ("8b", {"image_embeds": torch.zeros(0, 10)}, "image_embeds has no rows"),
        ("8b", {"negative_prompt_embeds": NEGATIVE}, "is given, but guidance_scale is 1"),
        ("8b", {"negative_glyph_embeds": torch.zeros(1, 6)}, "negative_glyph_embeds is given"),
        ("5b", {"renoise": random(0, 3, 1, 4, *SHAPE)}, "renoise is given"),
        ("8b", {"guidance_scale": 6.0}, "guidance needs negative_prompt_embeds"),
        ("8b", {"guidance_scale": 6.0, "negative_prompt": "dull"}, "guidance needs"),
        (
            "5b",
            {"guidance_scale": 2.0, "negative_prompt_embeds": torch.zeros(6, TEXT_DIM)},
            "negative_prompt_embeds has 6 rows: give up to 5",
        ),
        ("5b", {"noise": random(0, 4, 3, 2, 4), "image_latents": None}, "3 channels"),
        ("5b", {"noise": random(0, 4, 4, 3, 4), "image_latents": None}, "patches of 1x2|2x2"),
    ],
)
def test_conditions_that_do_not_suit_the_request(
    kind: str, given: dict[str, Any], words: str
) -> None:
    engine = make_engine(make_family(kind))
    with pytest.raises(RequestError, match=words) as caught:
        engine.add_request(make_request(kind, **given))
    assert "\n" not in str(caught.value)
    assert not engine.has_unfinished_requests()


class OneWord:
    """Stands for a prompt encoder."""

    def encode(self, prompt: str) -> tuple[torch.Tensor, tuple[str, ...]]:
        return torch.full((2, TEXT_DIM), float(len(prompt))), ()


def test_negative_prompts_are_encoded_where_there_is_an_encoder(run: Any) -> None:
    family = make_family("8b")
    family.prompt_encoder = OneWord()
    written = make_request("8b", guidance_scale=3.0, negative_prompt="dull")
    given = make_request(
        "8b", guidance_scale=3.0, negative_prompt_embeds=torch.full((2, TEXT_DIM), 4.0)
    )
    latents = [run(make_engine(family), request).latents("a") for request in (written, given)]
    assert torch.equal(*latents)


def test_without_conditions_the_camera_stands_still(run: Any) -> None:
    family = make_family("5b")
    plain = make_request("5b", image_latents=None)
    still = make_request("5b", image_latents=None, cameras=STILL)
    latents = [run(make_engine(family), request).latents("a") for request in (plain, still)]
    assert torch.equal(*latents)


def test_the_network_and_its_settings_must_agree() -> None:
    with pytest.raises(ConfigError, match="the network takes 4 channels"):
        make_family("8b", latent_shape=(5, 2, 4))


def test_levels_are_warped_or_given() -> None:
    warped = EulerSampler((1000, 750, 500, 250), shift=5, warp_timesteps=True, commit_timestep=14)
    assert warped.timesteps == pytest.approx((1000, 937.5, 833.3333, 625), abs=1e-4)
    assert warped.sigmas == pytest.approx((1, 0.9375, 0.8333333, 0.625, 0), abs=1e-7)
    given = EulerSampler((1000, 960), shift=5, warp_timesteps=False, commit_timestep=14)
    assert given.sigmas == pytest.approx((1, 0.96, 0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"timesteps": ()}, "timesteps is"),
        ({"timesteps": (500, 700)}, "timesteps is"),
        ({"timesteps": (1001,)}, "timesteps is"),
        ({"shift": 0}, "shift is 0"),
        ({"commit_timestep": -1}, "commit_timestep is -1"),
    ],
)
def test_wrong_schedules(given: dict[str, Any], words: str) -> None:
    arguments = {
        "timesteps": (1000,),
        "shift": 5,
        "warp_timesteps": True,
        "commit_timestep": 14,
        **given,
    }
    with pytest.raises(ConfigError, match=words):
        EulerSampler(arguments.pop("timesteps"), **arguments)
