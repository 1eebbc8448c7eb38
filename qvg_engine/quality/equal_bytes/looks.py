"""Looks at revisited ground, and which windows still see that ground."""

from typing import Literal

import msgspec

from qvg_engine.models.pocket.clips import FRAMES_PER_LATENT
from qvg_engine.models.pocket.memory import Revisit

Sees = Literal["whole", "part", "nothing"]
"""What a window sees of the ground of a look."""
Kind = Literal["told apart", "within both", "beyond both", "in between"]
KINDS: tuple[Kind, ...] = ("told apart", "within both", "beyond both", "in between")
"""What two windows see of the ground of a look; see `kind_of`."""


class Look(msgspec.Struct, frozen=True):
    """One look at revisited ground: PSNR in dB, as in `Revisit`, and what sees the ground.

    `partly_from` is the smallest window, in latent frames, that sees any of the ground when it
    comes back, `wholly_from` the smallest that sees the whole first sight when it is seen whole
    again. `lap` is the time between both sights in latent frames.
    """

    db: float
    other_db: float
    partly_from: int
    wholly_from: int
    lap: float

    @property
    def gain_db(self) -> float:
        """How much nearer to its first sight the ground is than other ground, in dB."""
        return self.db - self.other_db

    def seen_in(self, window: int) -> Sees:
        """What a window of so many latent frames sees of the ground."""
        if window >= self.wholly_from:
            return "whole"
        return "part" if window >= self.partly_from else "nothing"


def look_at(revisit: Revisit, *, frames_per_chunk: int) -> Look:
    """A look by the frames between which its ground was out of view."""
    reaches = [_window_for(*away, frames_per_chunk) for away in revisit.away]
    wholly = _window_for(revisit.first_frame, revisit.again_frame, frames_per_chunk)
    return Look(
        db=revisit.db,
        other_db=revisit.other_db,
        partly_from=min(reaches),
        wholly_from=max(wholly, *reaches),
        lap=(revisit.again_frame - revisit.first_frame) / FRAMES_PER_LATENT,
    )


def kind_of(look: Look, *, short: int, long: int) -> Kind:
    """Whether a look can tell two windows apart.

    "told apart": the ground has left the short window before it comes back, and the long one
    sees the whole first sight. "within both", "beyond both": both windows see all of the ground, or
    nothing of it.
    """
    seen = look.seen_in(short), look.seen_in(long)
    if seen == ("nothing", "whole"):
        return "told apart"
    if seen == ("whole", "whole"):
        return "within both"
    return "beyond both" if seen == ("nothing", "nothing") else "in between"


def _window_for(seen: int, back: int, frames_per_chunk: int) -> int:
    """The smallest window in which the chunk of pixel frame `back` sees pixel frame `seen`.

    A window counts the chunk itself, so it reaches `frames_per_chunk` less far back.
    """
    chunk_start = back // FRAMES_PER_LATENT // frames_per_chunk * frames_per_chunk
    return chunk_start - seen // FRAMES_PER_LATENT + frames_per_chunk
