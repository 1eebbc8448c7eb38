"""A video as segments: how many latent frames each starts from, and how many it adds."""

import msgspec


class Segment(msgspec.Struct, frozen=True):
    """`new_frames` latent frames that follow `condition_frames` of the clip before them."""

    condition_frames: int
    new_frames: int
    first_frame: int

    @property
    def continues(self) -> bool:
        """Whether there is a clip that it continues."""
        return self.condition_frames > 0


def split_segments(
    num_frames: int, *, context_frames: int, condition_frames: int, segment_frames: int
) -> tuple[Segment, ...]:
    """Segments that add `num_frames` latent frames to `context_frames` given ones.

    The first continues the whole context; without one it is made of text alone, and may be as long
    as a later segment and its condition together. The last one may be shorter. A later segment
    starts from frames of the one before it, whose own condition counts.
    """
    assert min(num_frames, condition_frames, segment_frames) >= 1
    segments: list[Segment] = []
    done = 0
    while done < num_frames:
        if segments:
            before = segments[-1].condition_frames + segments[-1].new_frames
            condition, most = min(condition_frames, before), segment_frames
        elif context_frames:
            condition, most = context_frames, segment_frames
        else:
            condition, most = 0, condition_frames + segment_frames
        new = min(most, num_frames - done)
        segments.append(Segment(condition, new, done))
        done += new
    return tuple(segments)
