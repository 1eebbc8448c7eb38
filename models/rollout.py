"""How a model family's videos are rolled out: chunk, window, sampler, text length."""

from typing import Literal, get_args

import msgspec

from qvg_engine.checks import check_choice
from qvg_engine.errors import ConfigError

Positions = Literal["absolute", "window"]


class RolloutSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a causal rollout, all of them in latent frames and timesteps.

    `latent_shape` is (channels, height, width) of one latent frame of a request that says
    nothing else. `window_frames` counts the sink and the chunk itself; None keeps everything.
    `timesteps` are those of the denoising passes; with `warp_timesteps` they index the table that
    `shift` warps. `commit_timestep` is the t of the commit pass. `text_len` is the number of text
    rows that the network attends to, padding included. `positions` are what keys and queries are
    rotated by: "absolute" counts from the start of the video, "window" among the tokens that a
    pass sees, so that no position is larger than the window.

    With `rollout_frames` a longer video is made of several rollouts, as CausVid does it: once so
    many frames are there, everything is forgotten but the last `overlap_frames`, from which the
    next rollout starts, at position 0.
    """

    latent_shape: tuple[int, int, int]
    frames_per_chunk: int = 3
    window_frames: int | None = None
    sink_frames: int = 0
    timesteps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    warp_timesteps: bool = True
    shift: float = 5.0
    commit_timestep: float = 0.0
    text_len: int = 512
    positions: Positions = "absolute"
    rollout_frames: int | None = None
    overlap_frames: int = 3

    def __post_init__(self) -> None:
        for name in ("frames_per_chunk", "text_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a positive number")
        if len(self.latent_shape) != 3 or min(self.latent_shape) < 1:
            raise ConfigError(
                f"latent_shape is {self.latent_shape}: give (channels, height, width), all positive"
            )
        check_choice("positions", self.positions, get_args(Positions))
        if self.sink_frames < 0:
            raise ConfigError(f"sink_frames is {self.sink_frames}: give 0 or more")
        if self.overlap_frames < 1:
            raise ConfigError(f"overlap_frames is {self.overlap_frames}: give a positive number")
        least = self.overlap_frames + self.frames_per_chunk
        if self.rollout_frames is not None and self.rollout_frames < least:
            raise ConfigError(
                f"rollout_frames is {self.rollout_frames}: give at least {least} (overlap_frames "
                f"{self.overlap_frames} + frames_per_chunk {self.frames_per_chunk}), or None"
            )
        smallest = self.sink_frames + self.frames_per_chunk
        if self.window_frames is not None and self.window_frames < smallest:
            raise ConfigError(
                f"window_frames is {self.window_frames}: give at least {smallest} (sink_frames "
                f"{self.sink_frames} + frames_per_chunk {self.frames_per_chunk}), or None for all"
            )

    def window_start(self, next_frame: int) -> int:
        """First frame after the sink that a chunk of `frames_per_chunk` at `next_frame` sees."""
        if self.window_frames is None:
            return 0
        recent = self.window_frames - self.sink_frames - self.frames_per_chunk
        return max(0, next_frame - recent)
