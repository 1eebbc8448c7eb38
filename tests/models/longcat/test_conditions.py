"""What a request may say, and what is refused before anything runs."""

from typing import Any

import pytest
import torch

from qvg_engine.errors import QvgError, RequestError
from qvg_engine.models.longcat.conditions import LongCatConditions
from qvg_engine.models.longcat.family import DEFAULT_NEGATIVE_PROMPT
from tests.models.longcat.toy import make_engine, make_family, make_request


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"guidance": 0.5}, r"guidance is 0\.5: give a number of at least 1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": "much"}, "guidance is 'much'"),
        ({"guidance": True}, "guidance is True"),
        ({"schedule": "fast"}, "schedule is 'fast': give one of standard, distilled"),
        ({"continue_from": "audio"}, "continue_from is 'audio'"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": 2.0}, r"num_steps is 2\.0"),
        ({"segment_frames": 1001}, "segment_frames is 1001"),
        ({"condition_frames": -1}, "condition_frames is -1"),
        ({"enhance_hf": 1}, "enhance_hf is 1"),
        ({"negative_mask": torch.ones(3)}, "negative_mask is given without"),
        (
            {"negative_prompt": "rain", "negative_prompt_embeds": torch.ones(2, 8)},
            "give one of them",
        ),
    ],
)
def test_fields_are_checked(field: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        LongCatConditions(**field)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"schedule": "distilled", "num_steps": 51}, "the distilled schedule has at most 50"),
        ({"prompt_mask": torch.ones(4)}, r"mask of the prompt is \[4\]: give \[5\]"),
        ({"prompt_mask": torch.zeros(5)}, "mask of the prompt leaves no row"),
        ({"negative_mask": torch.ones(2, 2)}, "mask of the negative prompt is"),
        ({"negative_prompt_embeds": torch.ones(8, 8)}, r"negative_prompt_embeds is \[8, 8\]"),
        ({"negative_prompt_embeds": torch.ones(2, 7)}, r"negative_prompt_embeds is \[2, 7\]"),
        ({"negative_prompt_embeds": torch.full((2, 8), torch.nan)}, "has NaN or Inf"),
        ({"negative_prompt_embeds": None}, "give negative_prompt_embeds, or guidance=1"),
        (
            {"negative_prompt_embeds": None, "negative_prompt": "rain"},
            "give negative_prompt_embeds, or guidance=1",
        ),
    ],
)
def test_what_does_not_suit_the_model(conditions: dict[str, Any], words: str) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=words):
        engine.add_request(make_request("a", conditions=conditions))
    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise": torch.zeros(2, 5, 4, 6), "context_latents": None}, "have 5 channels"),
        ({"noise": torch.zeros(2, 4, 3, 6), "context_latents": None}, "3x6 does not divide"),
        ({"context_latents": torch.zeros(2, 4, 4, 8)}, "context_latents is"),
        ({"prompt_embeds": torch.zeros(8, 8)}, "prompt_embeds is"),
        ({"renoise": torch.zeros(3, 1, 1, 4, 4, 6)}, "renoise is"),
        ({"output": "video"}, "has no VAE here"),
    ],
)
def test_other_fields_of_a_request(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(QvgError, match=words):
        make_engine().add_request(make_request("a", **fields))


class CountingEncoder:
    """Rows that depend on the length of the prompt."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def encode(self, prompt: str) -> tuple[torch.Tensor, tuple[str, ...]]:
        self.prompts.append(prompt)
        return torch.full((2, 8), len(prompt) / 100), ()


def test_negative_prompts_are_encoded_once(run: Any) -> None:
    encoder = CountingEncoder()
    engine = make_engine(make_family(prompt_encoder=encoder))
    none = {"negative_prompt_embeds": None}
    requests = [
        make_request("a", conditions=none),
        make_request("b", conditions=none),
        make_request("c", conditions={**none, "negative_prompt": "rain"}),
    ]
    collected = run(engine, *requests)
    assert encoder.prompts == [DEFAULT_NEGATIVE_PROMPT, "rain"]
    assert all(collected.last(name).finish_reason == "length" for name in "abc")
    # The same as with the rows of the encoder.
    rows = torch.full((2, 8), len("rain") / 100)
    given = make_request("c", conditions={"negative_prompt_embeds": rows})
    latents = run(make_engine(), given).latents("c")
    torch.testing.assert_close(latents, collected.latents("c"), atol=1e-4, rtol=0)
