from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from qvg_engine.errors import CheckpointError, OutputError
from qvg_engine.kernels.paged_attention import IdentityTransform
from qvg_engine.quality.capture import Capture, load, save
from tests.qvg_engine.quality.conftest import SHIPPED_CAPTURE, drawn_capture


def test_a_file_brings_everything_back(capture: Capture, tmp_path: Path) -> None:
    path = tmp_path / "new" / "capture.safetensors"
    save(capture, path)
    again = load(path)
    assert again.info == capture.info
    assert again.chunk_tokens == capture.chunk_tokens
    assert list(again.layers) == list(capture.layers)
    for number, layer in capture.layers.items():
        for part in ("queries", "keys", "values"):
            assert torch.equal(getattr(again.layers[number], part), getattr(layer, part))
    assert [item.name for item in path.parent.iterdir()] == [path.name], "a part is left behind"


@pytest.mark.parametrize(
    ("window", "sink", "seen"),
    [
        (None, 0, [[], [(0, 12)], [(0, 24)]]),
        (36, 0, [[], [(0, 12)], [(0, 24)]]),
        (24, 0, [[], [(0, 12)], [(12, 24)]]),
        (30, 6, [[], [(0, 6), (6, 12)], [(0, 6), (12, 24)]]),
        (None, 6, [[], [(0, 6), (6, 12)], [(0, 6), (6, 24)]]),
        (12, 0, [[], [], []]),
    ],
)
def test_what_a_chunk_sees(
    window: int | None, sink: int, seen: list[list[tuple[int, int]]]
) -> None:
    capture = drawn_capture()
    info = msgspec.structs.replace(capture.info, window_tokens=window, sink_tokens=sink)
    capture = msgspec.structs.replace(capture, info=info)
    found = [[(part.start, part.stop) for part in capture.seen_by(index)] for index in range(3)]
    assert found == seen


def test_without_a_grid_rows_are_used_as_they_are() -> None:
    capture = drawn_capture()
    info = msgspec.structs.replace(capture.info, grid=None)
    assert isinstance(msgspec.structs.replace(capture, info=info).transform, IdentityTransform)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot read the capture .*other"):
        load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot read the capture"):
        load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no capture of K and V"):
        load(path)


@pytest.mark.parametrize("part", ["queries", "keys", "values"])
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, part: str) -> None:
    path = tmp_path / "capture.safetensors"
    save(drawn_capture(), path)
    tensors = load_file(path)
    tensors[f"layer.0.{part}"] = tensors[f"layer.0.{part}"][:-1].contiguous()
    info = msgspec.json.encode(drawn_capture().info).decode()
    save_file(tensors, path, metadata={"capture": info})
    with pytest.raises(CheckpointError, match="layer 0 has queries"):
        load(path)


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "capture.safetensors"
    save(drawn_capture(), path)
    tensors = load_file(path)
    del tensors["layer.0.values"]
    info = msgspec.json.encode(drawn_capture().info).decode()
    save_file(tensors, path, metadata={"capture": info})
    with pytest.raises(CheckpointError, match=r"layer\.0\.values"):
        load(path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "capture").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        save(drawn_capture(), tmp_path / "capture")
    assert [item.name for item in tmp_path.iterdir()] == ["capture"]


def test_positions_are_written_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "capture.safetensors"
    save(drawn_capture(), path)
    tensors = load_file(path)
    assert tensors["positions"].tolist() == list(range(36))
    tensors["positions"] = tensors["positions"].flip(0).contiguous()
    info = msgspec.json.encode(drawn_capture().info).decode()
    save_file(tensors, path, metadata={"capture": info})
    with pytest.raises(CheckpointError, match="positions are not 0 to 35, in order"):
        load(path)


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save(drawn_capture(), tmp_path / "file" / "capture")


def test_the_shipped_capture_is_of_a_real_video() -> None:
    capture = load(SHIPPED_CAPTURE)
    assert (capture.info.model, capture.chunk_tokens) == ("pocket", (192, 192))
    ((number, layer),) = capture.layers.items()
    assert number == 3
    assert layer.keys.shape == layer.queries.shape == (384, 1, 128)
    assert layer.keys.dtype == torch.bfloat16
    # Tokens of a video resemble each other: drawn ones do not.
    for rows in (layer.keys.float(), layer.values.float()):
        assert rows.mean(dim=0).square().sum() > 0.1 * rows.square().sum(dim=-1).mean()
    assert SHIPPED_CAPTURE.stat().st_size < 300_000
