"""Prompts to rows of words."""

import pytest
import torch

from qvg_engine.errors import RequestError
from qvg_engine.models.pocket.clips import all_scenes
from qvg_engine.models.pocket.vocabulary import Vocabulary, read_prompt

PROMPT = "a red circle over a green background, camera moving left"


def test_every_scene_is_understood_and_different() -> None:
    words = [read_prompt(scene.prompt) for scene in all_scenes()]
    assert not any(word.unknown for word in words)
    assert len({word.rows for word in words}) == len(words)
    assert max(len(word.rows) for word in words) <= 16


@pytest.mark.parametrize(
    "same",
    [
        "A RED circle, over a green background. Camera moving LEFT!",
        "a red circle on a green backdrop; camera panning left",
    ],
)
def test_case_punctuation_and_synonyms_do_not_matter(same: str) -> None:
    assert read_prompt(same) == read_prompt(PROMPT)


@pytest.mark.parametrize(
    "reordered",
    [
        "camera moving left over a green background, a red circle",
        "a green background, camera moving left, a red circle over",
    ],
)
def test_word_order_does_not_matter(reordered: str) -> None:
    assert sorted(read_prompt(reordered).rows) == sorted(read_prompt(PROMPT).rows)


def test_colors_swapped_are_another_prompt() -> None:
    swapped = "a green circle over a red background, camera moving left"
    assert sorted(read_prompt(swapped).rows) != sorted(read_prompt(PROMPT).rows)


def test_a_last_color_without_a_noun_is_the_ground() -> None:
    short = set(read_prompt("red circle over green").rows)
    assert short <= set(read_prompt(PROMPT).rows)


def test_unknown_words_are_named_once() -> None:
    words = read_prompt("a crimson circle over a crimson sea, camera moving left")
    assert words.unknown == ("crimson", "sea")
    assert len(words.rows) == 7


@pytest.mark.parametrize("prompt", ["", "   ", "?!,"])
def test_empty_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(RequestError, match="describe the video"):
        Vocabulary().encode(prompt)


def test_embeddings_have_one_row_a_word() -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(32)
    rows, unknown = vocabulary.encode(PROMPT)
    assert rows.shape == (10, 32)
    assert unknown == ()
    other, _ = vocabulary.encode(PROMPT.replace("red", "blue"))
    assert (rows != other).any(1).sum() == 1
    nothing, unknown = vocabulary.encode("hello world")
    assert nothing.shape == (0, 32)
    assert unknown == ("hello", "world")
