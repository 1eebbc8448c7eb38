"""The Wan VAE, streamed, against diffusers' own decode and encode of whole videos."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qvg_engine.errors import CheckpointError, RequestError
from qvg_engine.models.vae.wan import WanVaeCodec, load_wan_vae

Save = Callable[..., Path]
LATENTS = (7, 4, 6, 5)


def random_latents() -> torch.Tensor:
    return torch.randn(LATENTS, generator=torch.Generator().manual_seed(2))


def whole_video(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """diffusers' decode in one go: [T, H, W, 3] in 0..255, not rounded."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)
    z = (latents * std + mean).transpose(0, 1)[None]
    pixels = vae.decode(z, return_dict=False)[0][0]
    video: torch.Tensor = (pixels.permute(1, 2, 3, 0) + 1) * 127.5
    return video


def stream(codec: WanVaeCodec, latents: torch.Tensor, sizes: list[int]) -> np.ndarray:
    state, parts = None, []
    for chunk in latents.split(sizes):
        frames, state = codec.decode_chunk(chunk, state)
        parts.append(frames)
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1] * 7, [2, 5]])
def test_chunks_equal_one_decode(
    wan_vae: Any, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """Before rounding to bytes, to 1e-4 of the range -1..1."""
    parts: list[torch.Tensor] = []

    def keep(pixels: torch.Tensor) -> torch.Tensor:
        parts.append(pixels.clamp(-1, 1))
        return torch.zeros(pixels.shape[2], 1, 1, 3, dtype=torch.uint8)

    monkeypatch.setattr("qvg_engine.models.vae.wan._to_frames", keep)
    frames = stream(WanVaeCodec(wan_vae), random_latents(), sizes)
    expected = whole_video(wan_vae, random_latents()) / 127.5 - 1
    streamed = torch.cat(parts, dim=2)[0].permute(1, 2, 3, 0)
    assert len(frames) == len(expected) == 25
    assert float(expected.std()) > 0.05
    assert float((streamed - expected).abs().max()) <= 1e-4


def test_frames_are_rounded_bytes(wan_vae: Any) -> None:
    frames = stream(WanVaeCodec(wan_vae), random_latents(), [3, 4])
    expected = whole_video(wan_vae, random_latents())
    assert frames.dtype == np.uint8
    assert frames.shape == (25, 48, 40, 3)
    assert float((torch.from_numpy(frames).float() - expected).abs().max()) <= 0.51


def test_two_videos_in_turns_do_not_mix(wan_vae: Any) -> None:
    codec = WanVaeCodec(wan_vae)
    videos = [random_latents(), -random_latents()]
    alone = [stream(codec, video, [3, 4]) for video in videos]
    states: list[Any] = [None, None]
    for start, stop in ((0, 3), (3, 7)):
        for index, video in enumerate(videos):
            frames, states[index] = codec.decode_chunk(video[start:stop], states[index])
            offset = codec.pixel_frames(start) if start else 0
            assert np.array_equal(frames, alone[index][offset : offset + len(frames)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_has_the_bytes_that_it_says(wan_vae: Any, dtype: torch.dtype) -> None:
    vae = type(wan_vae).from_config(wan_vae.config).to(dtype)
    codec = WanVaeCodec(vae)
    state = None
    for count in (1, 2, 3):
        _, state = codec.decode_chunk(torch.zeros(count, 4, 6, 5), state)
    assert state is not None
    assert sum(part.nbytes for part in state) == codec.state_bytes(6, 5)


def test_state_of_the_published_size() -> None:
    """About 1.9 GB in bf16 at 832x480, from the config alone."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan().to(torch.bfloat16)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 126_892_531
    codec = WanVaeCodec(vae)
    assert (codec.spatial_factor, codec.temporal_factor) == (8, 4)
    assert codec.state_bytes(60, 104) == pytest.approx(1.9e9, rel=0.05)


def test_lengths() -> None:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        codec = WanVaeCodec(AutoencoderKLWan())
    assert [codec.latent_frames(n) for n in (1, 2, 5, 6, 81)] == [1, 2, 2, 3, 21]
    assert [codec.pixel_frames(n) for n in (1, 2, 21)] == [1, 5, 81]
    assert [codec.encodable_frames(n) for n in (1, 4, 5, 8, 83)] == [1, 1, 5, 5, 81]


@pytest.mark.parametrize("count", [1, 9])
def test_encode_equals_diffusers(wan_vae: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, 48, 40, 3), dtype=np.uint8)
    codec = WanVaeCodec(wan_vae)
    latents = codec.encode(frames)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    posterior = wan_vae.encode(pixels).latent_dist
    mean = torch.tensor(wan_vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(wan_vae.config.latents_std).view(1, -1, 1, 1, 1)

    def normalised(z: torch.Tensor) -> torch.Tensor:
        return ((z - mean) / std)[0].transpose(0, 1)

    assert latents.shape == (codec.latent_frames(count), 4, 6, 5)
    torch.testing.assert_close(latents, normalised(posterior.mode()), atol=1e-4, rtol=1e-4)
    sampled = codec.encode(frames, generator=torch.Generator().manual_seed(4))
    expected = posterior.sample(generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(sampled, normalised(expected), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sampled, latents, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 48, 40), (0, 48, 40), (5, 44, 40)])
def test_frames_that_do_not_divide(wan_vae: Any, shape: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError, match="1 more than a multiple of 4 frames"):
        WanVaeCodec(wan_vae).encode(np.zeros((*shape, 3), np.uint8))


def test_a_diffusers_folder_is_loaded(wan_vae: Any, save_wan_vae: Save, tmp_path: Path) -> None:
    save_wan_vae(wan_vae, tmp_path / "vae")
    codec = load_wan_vae(tmp_path / "vae")
    assert np.array_equal(
        stream(codec, random_latents(), [7]), stream(WanVaeCodec(wan_vae), random_latents(), [7])
    )
    planned = load_wan_vae(tmp_path / "vae", device="meta", dtype=torch.bfloat16)
    assert next(planned.vae.parameters()).is_meta
    assert 2 * planned.num_bytes == codec.num_bytes


def original_name(name: str) -> str:
    """The name in Wan2.1_VAE.pth of a tensor of diffusers' module."""
    parts = {
        "quant_conv": "conv1",
        "post_quant_conv": "conv2",
        "encoder.conv_in": "encoder.conv1",
        "decoder.conv_in": "decoder.conv1",
        "norm_out": "head.0",
        "conv_out": "head.2",
        "mid_block.resnets.0": "middle.0.residual",
        "mid_block.attentions.0": "middle.1",
        "mid_block.resnets.1": "middle.2.residual",
    }
    inner = {"norm1": "0", "conv1": "2", "norm2": "3", "conv2": "6"}
    for half in ("encoder.", "decoder."):
        if name.startswith(f"{half}down_blocks."):
            name = name.replace("down_blocks", "downsamples")
            return rename_inner(name, inner, before=".residual")
        if name.startswith(f"{half}up_blocks."):
            block, rest = name.removeprefix(f"{half}up_blocks.").split(".", 1)
            kind, index, rest = rest.split(".", 2)
            number = 4 * int(block) + (3 if kind == "upsamplers" else int(index))
            return rename_inner(f"{half}upsamples.{number}.{rest}", inner, before=".residual")
    for there, here in sorted(parts.items(), key=lambda item: -len(item[0])):
        if there in name:
            return rename_inner(name.replace(there, here), inner, before="")
    return name


def rename_inner(name: str, inner: dict[str, str], *, before: str) -> str:
    name = name.replace("conv_shortcut", "shortcut")
    for there, here in inner.items():
        if "middle.1" not in name and f".{there}." in name and not name.startswith(f"{there}."):
            head, tail = name.rsplit(f".{there}.", 1)
            if head in ("encoder", "decoder"):
                return name
            return f"{head}{before}.{here}.{tail}"
    return name


def test_the_original_file_is_loaded(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    state = {original_name(key): value for key, value in vae.state_dict().items()}
    assert "decoder.upsamples.3.resample.1.weight" in state
    assert "encoder.downsamples.0.residual.2.weight" in state
    torch.save(state, tmp_path / "Wan2.1_VAE.pth")
    codec = load_wan_vae(tmp_path / "Wan2.1_VAE.pth")
    for key, value in vae.state_dict().items():
        assert torch.equal(codec.vae.state_dict()[key], value), key


def test_other_files_are_told(wan_vae: Any, save_wan_vae: Save, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="not a Wan VAE"):
        load_wan_vae(tmp_path / "vae.safetensors")
    save_wan_vae(wan_vae, tmp_path / "vae")
    (tmp_path / "vae/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(CheckpointError, match="config of AutoencoderKL, not of"):
        load_wan_vae(tmp_path / "vae")
