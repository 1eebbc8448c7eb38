"""TAEHV, streamed, against a plain pass over all frames at once, from the published names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from qvg_engine.errors import CheckpointError, RequestError
from qvg_engine.models.vae.taehv import Taehv, TaehvCodec, load_taehv

Weights = dict[str, Tensor]


@pytest.fixture(scope="module", params=[(16, 1), (32, 2)], ids=["taew2_1", "taehv1_5"])
def weights(request: pytest.FixtureRequest) -> Weights:
    torch.manual_seed(0)
    return Taehv(*request.param).state_dict()


@pytest.fixture
def codec(weights: Weights, tmp_path: Path) -> TaehvCodec:
    save_file(weights, tmp_path / "taew2_1.safetensors")
    return load_taehv(tmp_path / "taew2_1.safetensors")


def conv(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias")
    return functional.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def remember(weights: Weights, name: str, x: Tensor) -> Tensor:
    past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    y = functional.relu(conv(weights, f"{name}.conv.0", torch.cat([x, past], dim=1)))
    y = conv(weights, f"{name}.conv.4", functional.relu(conv(weights, f"{name}.conv.2", y)))
    return functional.relu(y + x)


def decode_all(weights: Weights, latents: Tensor, patch: int) -> Tensor:
    """The decoder by its numbers; frames [T, 3, H, W]."""
    x = functional.relu(conv(weights, "decoder.1", 3 * torch.tanh(latents / 3)))
    for first, frames in ((3, 1), (9, 2), (15, 2)):
        for index in range(first, first + 3):
            x = remember(weights, f"decoder.{index}", x)
        x = functional.interpolate(x, scale_factor=2)
        grown = conv(weights, f"decoder.{first + 4}.conv", x)
        x = grown.reshape(len(x) * frames, -1, *x.shape[2:])
        x = conv(weights, f"decoder.{first + 5}", x)
    x = functional.pixel_shuffle(conv(weights, "decoder.22", functional.relu(x)), patch)
    return x[3:].clamp(0, 1)


def encode_all(weights: Weights, pixels: Tensor, patch: int) -> Tensor:
    x = functional.pixel_unshuffle(torch.cat([pixels, pixels[-1:].repeat(3, 1, 1, 1)]), patch)
    x = functional.relu(conv(weights, "encoder.0", x))
    for first, frames in ((2, 2), (7, 2), (12, 1)):
        x = x.reshape(len(x) // frames, -1, *x.shape[2:])
        x = conv(weights, f"encoder.{first + 1}", conv(weights, f"encoder.{first}.conv", x), 2)
        for index in range(first + 2, first + 5):
            x = remember(weights, f"encoder.{index}", x)
    return conv(weights, "encoder.17", x)


@pytest.mark.parametrize("sizes", [[5], [3, 2], [1] * 5])
def test_chunks_equal_one_pass(codec: TaehvCodec, weights: Weights, sizes: list[int]) -> None:
    latents = 4 * torch.randn(5, codec.latent_channels, 4, 6)
    state, parts = None, []
    for chunk in latents.split(sizes):
        frames, state = codec.decode_chunk(chunk, state)
        parts.append(frames)
    streamed = torch.cat(parts).permute(0, 3, 1, 2) / 255
    expected = decode_all(weights, latents, codec.vae.patch_size)
    assert streamed.shape == expected.shape
    assert len(streamed) == codec.pixel_frames(5)
    assert float(expected.std()) > 0.01
    assert float((streamed - expected).abs().max()) <= 0.51 / 255
    assert state is not None
    assert sum(part.nbytes for part in state) == codec.state_bytes(4, 6)


@pytest.mark.parametrize("count", [1, 9])
def test_encode_equals_one_pass(codec: TaehvCodec, weights: Weights, count: int) -> None:
    factor = codec.spatial_factor
    shape = (count, 2 * factor, 3 * factor, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    expected = encode_all(weights, pixels, codec.vae.patch_size)
    latents = codec.encode(frames)
    assert latents.shape == (codec.latent_frames(count), codec.latent_channels, 2, 3)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)


def test_the_last_of_more_frames_counts(weights: Weights, tmp_path: Path) -> None:
    """A file whose first stage grows two frames is used for one."""
    wider = dict(weights)
    wider["decoder.7.conv.weight"] = torch.cat(
        [torch.zeros_like(weights["decoder.7.conv.weight"]), weights["decoder.7.conv.weight"]]
    )
    torch.save(wider, tmp_path / "taew2_1.pth")
    loaded = load_taehv(tmp_path / "taew2_1.pth").vae.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_what_does_not_fit(codec: TaehvCodec, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="1 more than a multiple of 4"):
        codec.encode(np.zeros((4, 32, 32, 3), np.uint8))
    save_file({"a": torch.zeros(1)}, tmp_path / "tae.safetensors")
    with pytest.raises(CheckpointError, match="is not TAEHV"):
        load_taehv(tmp_path / "tae.safetensors")
