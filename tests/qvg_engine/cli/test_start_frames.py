"""Starting from an image or a video: sizes, rates, and what the file then holds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from qvg_engine.cli.app import main
from qvg_engine.cli.start_frames import fit_frame, read_start
from qvg_engine.config import EngineConfig
from qvg_engine.errors import RequestError
from qvg_engine.loading import load_family
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.video.reader import read_video
from qvg_engine.video.writer import VideoWriter


class GreyCodec:
    """One pixel frame, then four a latent frame; latents are mean greys."""

    latent_channels, spatial_factor, frames_per_second = 1, 8, 16

    def pixel_frames(self, latent_frames: int) -> int:
        return 4 * latent_frames - 3

    def encodable_frames(self, num_frames: int) -> int:
        return 1 + (num_frames - 1) // 4 * 4

    def encode(self, frames: Any) -> torch.Tensor:
        grey = torch.from_numpy(frames[:: 4 if len(frames) > 1 else 1].mean((1, 2, 3)))
        return grey.view(-1, 1, 1, 1).expand(-1, 1, 4, 6)


def family(window: int | None = None) -> Any:
    settings = RolloutSettings(latent_shape=(1, 4, 6), window_frames=window)
    return SimpleNamespace(name="grey", codec=GreyCodec(), settings=settings)


def write_image(path: Path, pixels: np.ndarray) -> None:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "rgb24"
        for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
            container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_video(path: Path, frames: np.ndarray, *, rate: int) -> None:
    writer = VideoWriter(path, frames_per_second=rate, scale=1, overwrite=True)
    writer.write(frames)
    writer.close()


def ramp(count: int) -> np.ndarray:
    """Frame i is grey i."""
    greys = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(greys, (count, 32, 48, 3)).copy()


def test_an_image_is_one_latent_frame(tmp_path: Path) -> None:
    pixels = np.full((64, 96, 3), 77, np.uint8)
    write_image(tmp_path / "a.png", pixels)
    start = read_start(tmp_path / "a.png", family())
    assert start.frames.shape == (1, 32, 48, 3)
    assert start.latents.shape == (1, 1, 4, 6)
    assert np.abs(start.frames.astype(int) - 77).max() <= 1


@pytest.mark.parametrize(("window", "latents"), [(None, 18), (9, 6), (12, 9)])
def test_the_end_of_a_video_fills_the_window(
    tmp_path: Path, window: int | None, latents: int
) -> None:
    write_video(tmp_path / "a.mp4", ramp(100), rate=16)
    start = read_start(tmp_path / "a.mp4", family(window))
    count = 4 * latents - 3
    assert len(start.latents) == latents
    greys = start.frames.mean((1, 2, 3))
    assert np.abs(greys - np.arange(100 - count, 100)).max() <= 4


def test_a_faster_video_is_thinned(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramp(90), rate=32)
    greys = read_start(tmp_path / "a.mp4", family(9)).frames.mean((1, 2, 3))
    assert np.abs(greys - np.arange(89 - 40, 90, 2)).max() <= 4


def test_a_short_video_is_cut_to_whole_latents(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramp(8), rate=16)
    start = read_start(tmp_path / "a.mp4", family())
    assert len(start.frames) == 5
    assert np.abs(start.frames.mean((1, 2, 3)) - np.arange(3, 8)).max() <= 4


def test_frames_are_cut_in_the_middle() -> None:
    frame = np.zeros((20, 60, 3), np.uint8)
    frame[:, 20:40] = 200
    assert (fit_frame(frame, height=20, width=20) == 200).all()
    assert fit_frame(frame, height=40, width=24).shape == (40, 24, 3)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("nothing of the kind")
    with pytest.raises(RequestError, match="cannot read"):
        read_start(tmp_path / "a.png", family())


def test_pocket_goes_on_from_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", np.full((64, 64, 3), (30, 160, 40), np.uint8))
    arguments = ["generate", "a red circle", "--num-frames", "12", "--scale", "1"]
    assert main([*arguments, "--start-from", "a.png", "--device", "cpu"]) == 0
    (video,) = (tmp_path / "videos").glob("*.mp4")
    frames = read_video(video)
    codec = load_family(EngineConfig()).codec
    assert codec is not None
    assert len(frames) == codec.pixel_frames(1) + 12
    assert np.abs(frames[0].astype(int) - (30, 160, 40)).max() <= 12
    assert main([*arguments, "--start-from", "missing.png"]) == 2
