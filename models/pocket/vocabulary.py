"""The words that the embedded model understands, and their embeddings.

A prompt becomes one row per known word. A row depends on the word and on what it describes (the
shape, the ground or the camera), not on its place in the sentence: "a red circle over a green
background" and "green background, red circle" give the same rows in another order, and the
network's attention to text has no order.
"""

import re
from typing import Final

import msgspec
import torch
from torch import Tensor, nn

from qvg_engine.errors import RequestError
from qvg_engine.models.pocket.clips import COLORS, DIRECTIONS, SHAPES

FILLERS: Final = ("a", "over", "background", "camera", "moving")
WORDS: Final = (*FILLERS, *SHAPES, *COLORS, *DIRECTIONS)
ROLES: Final = ("none", "shape", "ground")

_SYNONYMS = {
    "an": "a",
    "the": "a",
    "on": "over",
    "above": "over",
    "against": "over",
    "ground": "background",
    "backdrop": "background",
    "moves": "moving",
    "pans": "moving",
    "panning": "moving",
    "leftwards": "left",
    "rightwards": "right",
    "upwards": "up",
    "downwards": "down",
    "violet": "purple",
    "disc": "circle",
    "disk": "circle",
    "ball": "circle",
}
_IGNORED = frozenset(("and", "with", "while", "is", "in", "to", "of", "that", "front"))


class Words(msgspec.Struct, frozen=True):
    """A prompt read word by word: rows of (word, role) indices, and the words not known."""

    rows: tuple[tuple[int, int], ...]
    unknown: tuple[str, ...]


def read_prompt(prompt: str, *, text_len: int = 16) -> Words:
    """Read a prompt, whatever its case and punctuation.

    Rows past `text_len` are dropped. Raises `RequestError` for a prompt without any word.
    """
    spoken = re.findall(r"[^\W_]+", prompt.lower())
    if not spoken:
        raise RequestError(
            f"prompt is {prompt!r}: describe the video, e.g. "
            "'a red circle over a green background, camera moving left'"
        )
    named = [_SYNONYMS.get(word, word) for word in spoken if word not in _IGNORED]
    unknown = tuple(dict.fromkeys(word for word in named if word not in WORDS))
    known = [word for word in named if word in WORDS]
    rows = tuple(
        (WORDS.index(word), ROLES.index(role))
        for word, role in zip(known, _roles(known), strict=True)
    )
    return Words(rows=rows[:text_len], unknown=unknown)


def _roles(words: list[str]) -> list[str]:
    """What each word describes: a colour describes the next shape or background named."""
    roles = ["none"] * len(words)
    taken: set[str] = set()
    for place, word in enumerate(words):
        if word not in COLORS:
            continue
        named = next((w for w in words[place + 1 :] if w in SHAPES or w == "background"), None)
        if named is not None:
            roles[place] = "shape" if named in SHAPES else "ground"
        else:
            # "... over green": a colour at the end belongs to what has none yet.
            roles[place] = "ground" if "shape" in taken else "shape"
        taken.add(roles[place])
    return roles


class Vocabulary(nn.Module):
    """A trained table of word and role embeddings."""

    def __init__(self, text_dim: int = 64, *, text_len: int = 16) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.text_len = text_len
        self.words = nn.Embedding(len(WORDS), text_dim)
        self.roles = nn.Embedding(len(ROLES), text_dim)

    def forward(self, rows: tuple[tuple[int, int], ...]) -> Tensor:
        """(word, role) indices -> embeddings [L, text_dim]."""
        indices = torch.tensor(rows, dtype=torch.long, device=self.words.weight.device)
        indices = indices.reshape(-1, 2)
        embedded: Tensor = self.words(indices[:, 0]) + self.roles(indices[:, 1])
        return embedded

    @torch.inference_mode()
    def encode(self, prompt: str) -> tuple[Tensor, tuple[str, ...]]:
        """A prompt -> embeddings [L, text_dim] of its known words, and the words not known.

        Without any known word there are no rows and the video is left to chance. Raises
        `RequestError` for an empty prompt.
        """
        words = read_prompt(prompt, text_len=self.text_len)
        return self(words.rows), words.unknown
