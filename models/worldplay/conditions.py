"""What a WorldPlay video is conditioned on beside its prompt."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.errors import RequestError
from qvg_engine.models.worldplay.actions import NUM_LABELS, action_labels
from qvg_engine.models.worldplay.cameras import CameraPath
from qvg_engine.models.worldplay.memory import default_points
from qvg_engine.models.worldplay.settings import WorldPlaySettings

MAX_GUIDANCE = 100.0


class WorldPlayConditions(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True
):
    """Conditions of one video; no tensor has a batch axis.

    * `pose`: movements such as "w-3,right-4", or the name of a pose file (see `CameraPath`); or
      `cameras`, a `CameraPath`. A camera per latent frame, context included; without them it
      stands still.
    * `actions`: labels in 0..80, one per latent frame; None: from the cameras' movements.
    * `image`: the first image, uint8 [H, W, 3], of the video's size; or `image_latents`
      [1, C, h, w], what the VAE makes of it.
    * `guidance_scale`: None takes the model's own; 1 is no guidance.
    * `negative_prompt`, or `negative_prompt_embeds` [L, text_dim]: what guidance leads away from.
    * `glyph_embeds`, `negative_glyph_embeds` [L, 1472]: ByT5 states of quoted text (8B).
    * `image_embeds` [L, 1152]: SigLIP states of the first image (8B).
    * `memory_points` [N, 3]: the points with which overlap of views is estimated.

    Raises `RequestError` naming field, value and range; what depends on the model is checked by
    `VideoEngine.add_request`.
    """

    pose: str | None = None
    cameras: CameraPath | None = None
    actions: tuple[int, ...] | None = None
    image: NDArray[np.uint8] | None = None
    image_latents: Tensor | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    negative_prompt_embeds: Tensor | None = None
    glyph_embeds: Tensor | None = None
    negative_glyph_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    memory_points: Tensor | None = None

    def __post_init__(self) -> None:
        if self.pose is not None and self.cameras is not None:
            raise RequestError("conditions: give either pose or cameras, not both")
        if self.image is not None:
            check_image(self.image)
            if self.image_latents is not None:
                raise RequestError("conditions: give either image or image_latents, not both")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise RequestError(
                "conditions: give either negative_prompt or negative_prompt_embeds, not both"
            )
        scale = self.guidance_scale
        if scale is not None and not 1 <= scale <= MAX_GUIDANCE:
            raise RequestError(f"guidance_scale is {scale!r}: give 1 to {MAX_GUIDANCE:g}")
        for index, label in enumerate(self.actions or ()):
            if type(label) is not int or not 0 <= label < NUM_LABELS:
                raise RequestError(
                    f"actions[{index}] is {label!r}: give a whole number from 0 to {NUM_LABELS - 1}"
                )
        if self.memory_points is not None:
            check_rows("memory_points", self.memory_points, 3)

    def camera_path(self, num_frames: int) -> CameraPath:
        """The cameras of a video of `num_frames` latent frames."""
        path = self.cameras
        name = "cameras"
        if self.pose is not None:
            path, name = CameraPath.from_pose(self.pose), "pose"
        if path is None:
            return CameraPath.standing_still(num_frames)
        if path.num_frames != num_frames:
            raise RequestError(
                f"{name} has {path.num_frames} latent frames, the video {num_frames} (context "
                "included): give one camera per latent frame; a pose string starts with one"
            )
        return CameraPath(path.world_to_camera.cpu(), path.intrinsics.cpu())

    def labels(self, path: CameraPath) -> tuple[int, ...]:
        """The action labels along a path."""
        if self.actions is None:
            return action_labels(path.world_to_camera)
        if len(self.actions) != path.num_frames:
            raise RequestError(
                f"actions has {len(self.actions)} labels, the video {path.num_frames} latent "
                "frames: give one per latent frame"
            )
        return self.actions

    def points(self) -> Tensor:
        """The points of the memory's selection, fp32 on the host."""
        if self.memory_points is None:
            return default_points()
        return self.memory_points.float().cpu()

    def guidance(self, settings: WorldPlaySettings) -> float:
        """The guidance scale of the request."""
        return settings.guidance_scale if self.guidance_scale is None else self.guidance_scale


def check_rows(name: str, value: Any, width: int) -> None:
    """`RequestError` unless `value` is a finite tensor [L, width], L at least 1."""
    shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[1] != width:
        raise RequestError(f"{name} is {shape}: give [L, {width}]")
    if not len(value) or not value.isfinite().all():
        raise RequestError(f"{name} has no rows, or has NaN or Inf")


def check_image(value: Any) -> None:
    """`RequestError` unless `value` is an array uint8 [H, W, 3]."""
    is_array = isinstance(value, np.ndarray)
    if not is_array or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        given = f"{value.dtype} {list(value.shape)}" if is_array else type(value).__name__
        raise RequestError(f"image is {given}: give uint8 [H, W, 3]")
