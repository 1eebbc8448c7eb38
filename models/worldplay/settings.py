"""How WorldPlay's videos are rolled out: chunk, memory, guidance, rounding."""

from qvg_engine.errors import ConfigError
from qvg_engine.models.rollout import RolloutSettings

FRAMES_PER_SECOND = 24

VIEW_DEGREES = (60.0, 35.0)
"""Width and height of the view in which overlap is counted."""

MEMORY_RADIUS = 8.0
"""What is farther from a camera than this, in world units, it does not remember."""


class WorldPlaySettings(RolloutSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a rollout with a memory that is chosen anew before every chunk.

    `window_frames` counts the memory and the chunk itself; None remembers everything. Of a full
    memory the first `sink_frames` and the last `recent_frames` are always there, the rest are
    groups of `frames_per_chunk` frames chosen by what they see. `commit_timestep` is the t at
    which the memory, and an image that is kept, are read. `guidance_scale` is that of requests
    which say none; 1 is none. `keeps_image`: the first latent frame is the image and stays as it
    is. `round_latents` and `round_cameras` say whether latents between steps, and cameras, are
    rounded to bf16, as in the original runs on GPUs; None: where the network computes in bf16.
    """

    frames_per_chunk: int = 4
    window_frames: int | None = 24
    commit_timestep: float = 14.0
    recent_frames: int = 12
    guidance_scale: float = 1.0
    keeps_image: bool = False
    round_latents: bool | None = None
    round_cameras: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions != "absolute":
            raise ConfigError(
                f"positions is {self.positions!r}: WorldPlay counts those of memory and chunk "
                "anew for every chunk; give 'absolute'"
            )
        if self.guidance_scale < 1:
            raise ConfigError(f"guidance_scale is {self.guidance_scale}: give 1 or more")
        if self.recent_frames < 1:
            raise ConfigError(f"recent_frames is {self.recent_frames}: give a positive number")
        for name in ("sink_frames", "recent_frames", "memory_frames"):
            frames = getattr(self, name)
            if frames is not None and frames % self.frames_per_chunk:
                raise ConfigError(
                    f"{name} is {frames}: give a multiple of frames_per_chunk, "
                    f"{self.frames_per_chunk}"
                )
        least = self.sink_frames + self.recent_frames
        if self.memory_frames is not None and self.memory_frames < least:
            raise ConfigError(
                f"window_frames is {self.window_frames}: give at least "
                f"{least + self.frames_per_chunk} (sink_frames {self.sink_frames} + recent_frames "
                f"{self.recent_frames} + frames_per_chunk {self.frames_per_chunk}), or None"
            )

    @property
    def memory_frames(self) -> int | None:
        """Latent frames of a full memory; None for any number."""
        if self.window_frames is None:
            return None
        return self.window_frames - self.frames_per_chunk
