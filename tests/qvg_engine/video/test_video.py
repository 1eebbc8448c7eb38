import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from qvg_engine.errors import OutputError, RequestError
from qvg_engine.video.reader import probe_video, read_video
from qvg_engine.video.writer import VideoWriter, free_path, require_writable_folder


def gradient(num_frames: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth frames of which no two are alike; H.264 keeps them to within a few levels."""
    t, y, x = np.meshgrid(
        np.arange(num_frames) + seed, np.arange(height), np.arange(width), indexing="ij"
    )
    red = 40 + 120 * x / width
    green = 40 + 120 * y / height
    return np.stack([red, green, 60 + 10 * (t % 12)], axis=-1).round().astype(np.uint8)


def test_frames_come_back_as_written(tmp_path: Path) -> None:
    chunks = [gradient(9, 64, 64), gradient(12, 64, 64, seed=9), gradient(12, 64, 64, seed=21)]
    with VideoWriter(tmp_path / "a.mp4", frames_per_second=16) as writer:
        for chunk in chunks:
            writer.write(chunk)
    written = np.concatenate(chunks)
    read = read_video(tmp_path / "a.mp4")
    assert read.shape == written.shape
    assert np.abs(read.astype(int) - written).mean() < 2
    assert np.abs(read.astype(int) - written).max() < 16


def test_file_says_what_it_is(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", frames_per_second=16) as writer:
        writer.write(gradient(5, 48, 64))
    info = probe_video(tmp_path / "a.mp4")
    assert (info.num_frames, info.height, info.width) == (5, 48, 64)
    assert info.frames_per_second == 16
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 6


def test_index_lies_in_front_of_the_pictures(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", frames_per_second=16) as writer:
        writer.write(gradient(5, 64, 64))
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("name", ["red", "green", "blue", "yellow", "white", "purple"])
def test_flat_colours_survive(tmp_path: Path, name: str) -> None:
    colours = {
        "red": (220, 40, 40),
        "green": (40, 180, 60),
        "blue": (50, 80, 220),
        "yellow": (230, 210, 50),
        "white": (240, 240, 240),
        "purple": (150, 60, 190),
    }
    frames = np.full((3, 32, 32, 3), colours[name], dtype=np.uint8)
    with VideoWriter(tmp_path / "a.mp4", frames_per_second=16) as writer:
        writer.write(frames)
    assert np.abs(read_video(tmp_path / "a.mp4").astype(int) - frames).max() <= 6


@pytest.mark.parametrize(("height", "width"), [(31, 32), (32, 31), (31, 33)])
def test_odd_sizes_are_padded_by_their_edge(tmp_path: Path, height: int, width: int) -> None:
    frames = gradient(4, height, width)
    with VideoWriter(tmp_path / "a.mp4", frames_per_second=16) as writer:
        writer.write(frames)
    read = read_video(tmp_path / "a.mp4").astype(int)
    assert read.shape == (4, height + height % 2, width + width % 2, 3)
    assert np.abs(read[:, :height, :width] - frames).max() < 16
    assert np.abs(read[:, -1] - read[:, -2]).max() < 16


def test_scale_repeats_pixels_and_shrink_undoes_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames = random.integers(60, 200, (3, 16, 24, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "a.mp4", frames_per_second=16, scale=8) as writer:
        writer.write(frames)
    assert probe_video(tmp_path / "a.mp4").height == 128
    read = read_video(tmp_path / "a.mp4", shrink=8)
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 12


def test_name_appears_only_when_complete(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
    writer.write(gradient(30, 64, 64))
    assert not (tmp_path / "a.mp4").exists()
    assert writer.close() == tmp_path / "a.mp4"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail_in_the_middle() -> None:
        with VideoWriter(tmp_path / "a.mp4", frames_per_second=16) as writer:
            writer.write(gradient(30, 64, 64))
            raise RuntimeError("the stream failed")

    with pytest.raises(RuntimeError, match="the stream failed"):
        fail_in_the_middle()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("num_frames", [0, 5])
def test_discard_leaves_nothing_and_may_be_repeated(tmp_path: Path, num_frames: int) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
    writer.write(gradient(num_frames, 64, 64))
    writer.discard()
    writer.discard()
    assert os.listdir(tmp_path) == []


def test_discard_keeps_a_closed_file(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
    writer.write(gradient(5, 64, 64))
    writer.close()
    writer.discard()
    assert probe_video(tmp_path / "a.mp4").num_frames == 5


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
    with pytest.raises(OutputError, match="no frames"):
        writer.close()
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    paths = []
    for num_frames in (5, 6, 7):
        writer = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
        writer.write(gradient(num_frames, 64, 64))
        paths.append(writer.close())
    assert [path.name for path in paths] == ["a.mp4", "a-2.mp4", "a-3.mp4"]
    assert [probe_video(path).num_frames for path in paths] == [5, 6, 7]
    assert free_path(tmp_path / "a.mp4").name == "a-4.mp4"

    with VideoWriter(tmp_path / "a.mp4", frames_per_second=16, overwrite=True) as writer:
        writer.write(gradient(8, 64, 64))
    assert probe_video(tmp_path / "a.mp4").num_frames == 8
    assert len(os.listdir(tmp_path)) == 3


def test_two_writers_of_one_name_both_keep_their_video(tmp_path: Path) -> None:
    first = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
    second = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
    first.write(gradient(5, 64, 64))
    second.write(gradient(6, 64, 64))
    assert (first.close().name, second.close().name) == ("a.mp4", "a-2.mp4")


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "new" / "deep" / "a.mp4", frames_per_second=16) as writer:
        writer.write(gradient(5, 64, 64))
    assert probe_video(tmp_path / "new" / "deep" / "a.mp4").num_frames == 5


def test_a_folder_that_cannot_be_made_is_an_error_before_any_frame(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*a\.mp4"):
        VideoWriter(tmp_path / "file" / "a.mp4", frames_per_second=16)


def test_a_folder_that_vanishes_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    writer = VideoWriter(tmp_path / "videos" / "a.mp4", frames_per_second=16)
    writer.write(gradient(5, 64, 64))
    shutil.rmtree(tmp_path / "videos")
    with pytest.raises(OutputError, match=r"cannot write .*a\.mp4"):
        writer.close()
    assert os.listdir(tmp_path) == []


def test_require_writable_folder(tmp_path: Path) -> None:
    require_writable_folder(tmp_path)
    require_writable_folder(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to the folder"):
        require_writable_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write to the folder"):
        require_writable_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ],
    ids=["float", "no time axis", "four channels"],
)
def test_frames_of_another_kind_are_refused(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    with (
        pytest.raises(RequestError, match=r"give uint8 \[T, H, W, 3\]"),
        VideoWriter(tmp_path / "a.mp4", frames_per_second=16) as writer,
    ):
        writer.write(frames)
    assert os.listdir(tmp_path) == []


def test_a_change_of_size_is_refused(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", frames_per_second=16)
    writer.write(gradient(2, 32, 32))
    with pytest.raises(RequestError, match="one size"):
        writer.write(gradient(2, 32, 34))
    writer.discard()


@pytest.mark.parametrize(("fps", "scale"), [(0, 1), (-1, 1), (16, 0)])
def test_settings_are_checked(tmp_path: Path, fps: float, scale: int) -> None:
    with pytest.raises(RequestError, match="must be"):
        VideoWriter(tmp_path / "a.mp4", frames_per_second=fps, scale=scale)
    assert os.listdir(tmp_path) == []


def test_reading_what_is_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    for path in (tmp_path / "a.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(RequestError, match="cannot read the video"):
            read_video(path)
        with pytest.raises(RequestError, match="cannot read the video"):
            probe_video(path)
