"""Draws the clips that the embedded model learns from.

A clip shows one flat shape that bounces inside the view, over a textured ground that a camera
crosses in a straight line. The ground is a torus: 128 pixels along the camera's direction and 64
across, so what left the 64-pixel view comes back after a whole number of latent frames
(`RETURN_FRAMES`). Everything follows from the seed; nothing here knows of latents or networks.
"""

from itertools import product
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

SIZE: Final = 64
"""Height and width of the view in pixels."""
GROUND_LENGTH: Final = 128
"""Pixels of ground along the camera's direction before it repeats."""
FRAMES_PER_LATENT: Final = 4
"""Pixel frames that one latent frame stands for."""
STUMBLE_LATENTS: Final = 3
"""Latent frames that a stumbling camera moves at one speed, or a multiple of them."""
RETURN_FRAMES: Final = (12, 16, 20, 28, 40)
"""Latent frames between ground leaving the view and coming back, one value for each speed."""

SHAPES: Final = ("circle", "square", "triangle")
COLORS: Final = ("red", "green", "blue", "yellow", "white", "purple")
DIRECTIONS: Final = ("left", "right", "up", "down")

FLAT_RGB: Final = {
    "red": (222, 42, 42),
    "green": (45, 180, 65),
    "blue": (50, 85, 225),
    "yellow": (240, 215, 45),
    "white": (248, 248, 248),
    "purple": (150, 50, 195),
}
"""The colour of a shape."""
GROUND_RGB: Final = {
    "red": ((112, 12, 18), (236, 84, 72)),
    "green": ((12, 84, 34), (98, 208, 108)),
    "blue": ((14, 28, 118), (92, 142, 240)),
    "yellow": ((148, 126, 8), (250, 236, 104)),
    "white": ((158, 158, 162), (252, 252, 252)),
    "purple": ((70, 14, 102), (184, 104, 226)),
}
"""The darkest and the lightest colour of a ground."""

_LONGEST_STUMBLE = 16
_FULL_STUMBLES = 0.7
"""Share of stumbles in which the camera is slower than the slowest that should be."""

_NUM_MODES = 12
_OUTLINE_PIXELS = 1.5
_OUTLINE_SHADE = 0.5


class Scene(msgspec.Struct, frozen=True):
    """What a clip shows, and what its prompt says.

    `color` is the shape's and `background` the ground's; both are of `COLORS` and differ.
    """

    shape: str
    color: str
    background: str
    direction: str

    @property
    def prompt(self) -> str:
        """The scene in the words of the vocabulary."""
        return (
            f"a {self.color} {self.shape} over a {self.background} background, "
            f"camera moving {self.direction}"
        )


class Clip(msgspec.Struct, frozen=True):
    """Frames [T, 64, 64, 3] uint8 and how they were made.

    `camera_offset` [T] float64 is the position, in pixels of ground, of the view's first row or
    column (modulo `GROUND_LENGTH` it names the ground that is seen); `speed` is in pixels a frame.
    `on_pace` [T] is where the camera moves as it should: everywhere, unless it stumbles.
    """

    frames: NDArray[np.uint8]
    scene: Scene
    camera_offset: NDArray[np.float64]
    speed: float
    on_pace: NDArray[np.bool_]


def all_scenes() -> tuple[Scene, ...]:
    """Every scene that can be drawn, in a fixed order."""
    return _SCENES


_SCENES: Final = tuple(
    Scene(shape, color, background, direction)
    for shape, color, background, direction in product(SHAPES, COLORS, COLORS, DIRECTIONS)
    if color != background
)


def scene_of(seed: int) -> Scene:
    """What the clip of a seed shows."""
    return _pick_scene(np.random.default_rng(seed))


def draw_clip(
    seed: int, *, num_frames: int, scene: Scene | None = None, stumbling: bool = False
) -> Clip:
    """The clip of a seed; without `scene` the seed also picks what it shows.

    With `stumbling` the camera loses its pace and finds it again, over and over: first for up to
    `_LONGEST_STUMBLE` of its pieces, in which it moves slower than any camera should.
    """
    plan = _plan(seed, num_frames, scene, stumbling=stumbling)
    view = _view(plan.ground, plan.camera_offset)
    if plan.scene.direction in ("left", "right"):
        view = view.swapaxes(1, 2)
    frames = _paint_shape(np.ascontiguousarray(view), plan.scene, plan.track)
    return Clip(
        frames=frames,
        scene=plan.scene,
        camera_offset=plan.camera_offset,
        speed=plan.speed,
        on_pace=plan.on_pace,
    )


def shape_track(seed: int, *, num_frames: int) -> NDArray[np.float64]:
    """Where the shape of a seed's clip is: [T, 3] of x, y and radius (half its box) in pixels."""
    return _plan(seed, num_frames, None).track


def stumbling_pace(seed: int, *, num_frames: int) -> NDArray[np.bool_]:
    """`on_pace` [T] of a seed's stumbling clip."""
    return _plan(seed, num_frames, None, stumbling=True).on_pace


class _Plan(msgspec.Struct, frozen=True):
    scene: Scene
    ground: NDArray[np.float32]
    camera_offset: NDArray[np.float64]
    speed: float
    on_pace: NDArray[np.bool_]
    track: NDArray[np.float64]


def _plan(seed: int, num_frames: int, scene: Scene | None, *, stumbling: bool = False) -> _Plan:
    """Everything that the seed decides; the order of draws is part of what a seed means."""
    rng = np.random.default_rng(seed)
    picked = _pick_scene(rng)
    scene = picked if scene is None else scene
    ground = _ground(rng, scene.background)
    speed = _camera_speed(RETURN_FRAMES[int(rng.integers(len(RETURN_FRAMES)))])
    sign = 1.0 if scene.direction in ("right", "down") else -1.0
    steps = np.arange(num_frames, dtype=np.float64)
    offset = rng.uniform(0, GROUND_LENGTH) + sign * speed * steps
    track = _bouncing_track(rng, num_frames)
    on_pace = np.ones(num_frames, dtype=bool)
    if stumbling:
        speeds, on_pace = _stumble(rng, num_frames, speed)
        offset = offset[0] + sign * (np.cumsum(speeds) - speeds[0])
    return _Plan(
        scene=scene,
        ground=ground,
        camera_offset=offset,
        speed=speed,
        on_pace=on_pace,
        track=track,
    )


def _camera_speed(return_frames: int) -> float:
    """Pixels a frame that bring ground back `return_frames` latent frames after it left."""
    return (GROUND_LENGTH - SIZE) / (FRAMES_PER_LATENT * return_frames)


def _stumble(
    rng: np.random.Generator, num_frames: int, speed: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Speeds [T] of a camera that loses its pace again and again, and where it keeps it [T].

    How slow it becomes says nothing of the pace that it finds afterwards.
    """
    speeds, on_pace = np.empty(num_frames), np.zeros(num_frames, dtype=bool)
    step = STUMBLE_LATENTS * FRAMES_PER_LATENT
    frame, length = 0, int(rng.integers(1, _LONGEST_STUMBLE + 1))
    keeps_pace = False
    while frame < num_frames:
        piece = slice(frame, frame + length * step)
        on_pace[piece] = keeps_pace
        if keeps_pace:
            speeds[piece] = _camera_speed(int(rng.choice(RETURN_FRAMES[2:])))
        elif rng.random() < _FULL_STUMBLES:
            speeds[piece] = rng.uniform(0.0, 0.9) * _camera_speed(RETURN_FRAMES[-1])
        else:
            speeds[piece] = rng.uniform(0.4, 0.9) * speed
        frame += length * step
        keeps_pace = not keeps_pace
        length = int(rng.integers(1, 3))
    return speeds, on_pace


def _pick_scene(rng: np.random.Generator) -> Scene:
    return _SCENES[int(rng.integers(len(_SCENES)))]


def _ground(rng: np.random.Generator, color: str) -> NDArray[np.float32]:
    """A texture [GROUND_LENGTH, SIZE, 3], 0 to 255, that repeats in both directions."""
    shade = 0.5 + 0.5 * np.tanh(1.1 * _smooth_field(rng))
    tint = _smooth_field(rng)
    dark, light = (np.asarray(rgb, dtype=np.float32) for rgb in GROUND_RGB[color])
    ground = dark + shade[..., None] * (light - dark)
    tint_rgb = rng.normal(size=3).astype(np.float32) * (2.0 if color == "white" else 4.0)
    ground = ground + tint[..., None] * tint_rgb
    tinted: NDArray[np.float32] = np.clip(ground, 0, 255).astype(np.float32)
    return tinted


def _smooth_field(rng: np.random.Generator) -> NDArray[np.float32]:
    """A random sum of plane waves, periodic on the torus, of zero mean and unit variance."""
    along = np.arange(GROUND_LENGTH)[:, None] * (2 * np.pi / GROUND_LENGTH)
    across = np.arange(SIZE)[None, :] * (2 * np.pi / SIZE)
    field = np.zeros((GROUND_LENGTH, SIZE))
    for _ in range(_NUM_MODES):
        # Wavelengths of 20 pixels and more: an 8x VAE has to keep them.
        k_along, k_across = int(rng.integers(1, 6)), int(rng.integers(-2, 3))
        phase = rng.uniform(0, 2 * np.pi)
        weight = 1.0 / np.hypot(k_along / 2, k_across)
        field += weight * np.cos(k_along * along + k_across * across + phase)
    field -= field.mean()
    scaled: NDArray[np.float32] = (field / field.std()).astype(np.float32)
    return scaled


def _view(ground: NDArray[np.float32], offset: NDArray[np.float64]) -> NDArray[np.float32]:
    """What the camera sees [T, SIZE, SIZE, 3], its direction on axis 1."""
    first = np.floor(offset)
    rows = (first[:, None].astype(np.int64) + np.arange(SIZE)) % GROUND_LENGTH
    part = (offset - first).astype(np.float32)[:, None, None, None]
    here = ground[rows]
    after: NDArray[np.float32] = ground[(rows + 1) % GROUND_LENGTH]
    after -= here
    after *= part
    after += here
    return after


def _bouncing_track(rng: np.random.Generator, num_frames: int) -> NDArray[np.float64]:
    """Positions and radius [T, 3] of a shape that bounces off the edges of the view."""
    radius = rng.uniform(11.0, 14.0)
    angle = rng.uniform(0, 2 * np.pi)
    speed = rng.uniform(0.4, 1.2)
    low, high = radius + 1.0, SIZE - radius - 1.0
    steps = np.arange(num_frames)
    x = _bounce(rng.uniform(low, high) + speed * np.cos(angle) * steps, low, high)
    y = _bounce(rng.uniform(low, high) + speed * np.sin(angle) * steps, low, high)
    return np.stack([x, y, np.full(num_frames, radius)], axis=1)


def _paint_shape(
    view: NDArray[np.float32], scene: Scene, track: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Paints the shape with its darker outline over `view`, in place, and rounds."""
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    x, y = track[:, 0].astype(np.float32), track[:, 1].astype(np.float32)
    dx = axis[None, None, :] - x[:, None, None]
    dy = axis[None, :, None] - y[:, None, None]
    distance = shape_distance(scene.shape, dx, dy, float(track[0, 2]))
    outside = np.clip(distance + 0.5, 0, 1)[..., None]
    core = np.clip(0.5 - _OUTLINE_PIXELS - distance, 0, 1)[..., None]
    rgb = np.asarray(FLAT_RGB[scene.color], dtype=np.float32)
    view *= outside
    view += (1.0 - outside) * (_OUTLINE_SHADE * rgb)
    view += core * ((1.0 - _OUTLINE_SHADE) * rgb)
    painted: NDArray[np.uint8] = np.rint(np.clip(view, 0, 255)).astype(np.uint8)
    return painted


def _bounce(position: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Folds a straight path into [low, high] as if its ends were mirrors."""
    span = high - low
    folded = np.mod(position - low, 2 * span)
    return low + np.where(folded > span, 2 * span - folded, folded)


def shape_distance(
    shape: str, dx: NDArray[np.float32], dy: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """Signed distance in pixels (negative inside) to a shape that fits a box of +-radius."""
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - np.float32(radius)
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - np.float32(0.86 * radius)
    else:
        # Upright, as wide as high: slanted sides of slope 2 and a base at dy = radius.
        side = (2 * np.abs(dx) - dy - np.float32(radius)) / np.float32(np.sqrt(5.0))
        distance = np.maximum(side, dy - np.float32(radius))
    return distance.astype(np.float32)
