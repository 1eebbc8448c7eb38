"""The VAE of HunyuanVideo-1.5, streamed, against diffusers' decode and encode of whole videos."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qvg_engine.decoder_slots import DecoderSlots
from qvg_engine.errors import CheckpointError, ConfigError, RequestError
from qvg_engine.models.turns import Turns
from qvg_engine.models.vae.hunyuan import (
    HunyuanVaeCodec,
    VideoMemory,
    load_hunyuan_vae,
    published_hunyuan_vae,
)

Save = Callable[..., Path]
LATENTS = (6, 4, 3, 2)


def random_latents(seed: int = 2) -> torch.Tensor:
    return torch.randn(LATENTS, generator=torch.Generator().manual_seed(seed))


def whole_video(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """diffusers' decode in one go: [1, 3, T, H, W], not clamped."""
    z = (latents / vae.config.scaling_factor).transpose(0, 1)[None]
    video: torch.Tensor = vae.decode(z, return_dict=False)[0]
    return video


def stream(codec: HunyuanVaeCodec, latents: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Pixels, not yet bytes, with the state taken out and put back between chunks."""
    state, parts = None, []
    with torch.inference_mode():
        for chunk in latents.split(sizes):
            memory = VideoMemory(state, codec.attention_frames)
            parts += list(codec.pixels(chunk, memory))
            state = memory.state
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [4, 2], [1, 3, 2]])
def test_chunks_equal_one_decode(hunyuan_vae: Any, sizes: list[int]) -> None:
    expected = whole_video(hunyuan_vae, random_latents())
    streamed = stream(HunyuanVaeCodec(hunyuan_vae), random_latents(), sizes)
    assert streamed.shape == expected.shape == (1, 3, 21, 48, 32)
    assert float(expected.std()) > 0.05
    assert float((streamed - expected).abs().max()) <= 1e-4


def test_other_compressions_too() -> None:
    """Fewer levels, one of them in time, and channels that do not change between them."""
    from diffusers import AutoencoderKLHunyuanVideo15

    torch.manual_seed(3)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        upsample_match_channel=False,
        downsample_match_channel=False,
    ).eval()
    codec = HunyuanVaeCodec(vae)
    assert (codec.spatial_factor, codec.pixel_frames(6)) == (4, 11)
    with torch.inference_mode():
        expected = whole_video(vae, random_latents())
    streamed = stream(codec, random_latents(), [4, 2])
    assert float((streamed - expected).abs().max()) <= 1e-4


def banded_mask(bound: int) -> Callable[..., torch.Tensor]:
    """In place of diffusers' mask: each latent frame sees the last `bound`, its own among them."""

    def mask(
        n_frame: int, n_hw: int, dtype: torch.dtype, device: torch.device, batch_size: int
    ) -> torch.Tensor:
        frame = torch.arange(n_frame * n_hw, device=device) // n_hw
        age = frame[:, None] - frame
        seen = (age >= 0) & (age < bound)
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))[None]

    return mask


@pytest.mark.parametrize("bound", [1, 3])
def test_attention_looks_no_further_than_its_bound(
    hunyuan_vae: Any, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    exact = whole_video(hunyuan_vae, random_latents())
    block = type(hunyuan_vae.decoder.mid_block.attentions[0])
    monkeypatch.setattr(block, "prepare_causal_attention_mask", staticmethod(banded_mask(bound)))
    expected = whole_video(hunyuan_vae, random_latents())
    codec = HunyuanVaeCodec(hunyuan_vae, attention_frames=bound)
    for sizes in ([4, 2], [1] * 6):
        frames = stream(codec, random_latents(), sizes)
        assert float((frames - expected).abs().max()) <= 1e-4
    early = codec.pixel_frames(bound)
    assert float((frames[:, :, :early] - exact[:, :, :early]).abs().max()) <= 1e-4
    assert float((frames[:, :, early:] - exact[:, :, early:]).abs().max()) > 1e-3


def test_a_bound_that_is_none(hunyuan_vae: Any) -> None:
    with pytest.raises(ConfigError, match="attention_frames is 0: give at least 1"):
        HunyuanVaeCodec(hunyuan_vae, attention_frames=0)


def test_frames_are_rounded_bytes(hunyuan_vae: Any) -> None:
    frames, _ = HunyuanVaeCodec(hunyuan_vae).decode_chunk(random_latents(), None)
    assert (frames.dtype, frames.shape) == (torch.uint8, (21, 48, 32, 3))
    expected = (whole_video(hunyuan_vae, random_latents())[0].permute(1, 2, 3, 0) + 1) * 127.5
    assert float((frames.float() - expected.clamp(0, 255)).abs().max()) <= 0.51


def test_two_videos_share_a_slot(hunyuan_vae: Any) -> None:
    """The state of the one that waits goes to the host and back."""
    codec = HunyuanVaeCodec(hunyuan_vae)
    videos = {name: random_latents(seed) for name, seed in (("a", 2), ("b", 5))}
    slots = DecoderSlots(codec, 1, num_spilled=1)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in videos}
    for name in videos:
        slots.acquire(name)
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        for name, video in videos.items():
            parts[name].append(slots.decode(name, video[start:stop]))
            assert slots.num_bytes == codec.state_bytes_after(3, 2, stop)
    assert slots.num_spilled_bytes == codec.state_bytes_after(3, 2, 6)
    for name, video in videos.items():
        assert torch.equal(torch.cat(parts[name]), codec.decode_chunk(video, None)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bound", [None, 3])
def test_state_has_the_bytes_that_it_says(
    hunyuan_vae: Any, dtype: torch.dtype, bound: int | None
) -> None:
    vae = type(hunyuan_vae).from_config(hunyuan_vae.config).to(dtype)
    codec = HunyuanVaeCodec(vae, attention_frames=bound)
    state, seen = None, 0
    for count in (1, 2, 3):
        _, state = codec.decode_chunk(torch.zeros(count, 4, 3, 2), state)
        seen += count
        assert state is not None
        assert sum(part.nbytes for part in state) == codec.state_bytes_after(3, 2, seen)
        # No part is a view that holds on to more than it shows.
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in state)
    growth = codec.state_bytes_after(3, 2, 7) - codec.state_bytes_after(3, 2, 6)
    assert growth == (2 * 6 * 32 * dtype.itemsize if bound is None else 0)
    assert codec.state_bytes(3, 2) == codec.state_bytes_after(3, 2, 32)


def test_the_published_size() -> None:
    """At 832x480 in bf16, from the config alone: K and V are 6.4 MB a latent frame."""
    codec = published_hunyuan_vae(torch.bfloat16)
    assert (codec.spatial_factor, codec.temporal_factor, codec.latent_channels) == (16, 4, 32)
    one, two = (codec.state_bytes_after(30, 52, frames) for frames in (1, 2))
    assert two - one == 2 * 30 * 52 * 1024 * 2
    assert codec.state_bytes(30, 52) == one + 31 * (two - one)
    assert one == pytest.approx(2.76e9, rel=0.01)
    assert codec.decode_bytes(30, 52) > 2**30


def test_lengths(hunyuan_vae: Any) -> None:
    codec = HunyuanVaeCodec(hunyuan_vae)
    assert [codec.latent_frames(n) for n in (1, 2, 5, 6, 125)] == [1, 2, 2, 3, 32]
    assert [codec.pixel_frames(n) for n in (1, 2, 32)] == [1, 5, 125]
    assert [codec.encodable_frames(n) for n in (1, 4, 5, 8, 127)] == [1, 1, 5, 5, 125]


@pytest.mark.parametrize("count", [1, 9])
def test_encode_equals_diffusers(hunyuan_vae: Any, count: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (count, 48, 32, 3), dtype=np.uint8)
    codec = HunyuanVaeCodec(hunyuan_vae)
    latents = codec.encode(frames)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    posterior = hunyuan_vae.encode(pixels).latent_dist
    scale = hunyuan_vae.config.scaling_factor
    assert latents.shape == (codec.latent_frames(count), 4, 3, 2)
    expected = (posterior.mode() * scale)[0].transpose(0, 1)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
    sampled = codec.encode(frames, generator=torch.Generator().manual_seed(4))
    drawn = posterior.sample(generator=torch.Generator().manual_seed(4)) * scale
    torch.testing.assert_close(sampled, drawn[0].transpose(0, 1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(sampled, latents, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 48, 32), (0, 48, 32), (5, 44, 32), (1, 48, 40)])
def test_frames_that_do_not_divide(hunyuan_vae: Any, shape: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError, match="1 more than a multiple of 4 frames, of a size that 16"):
        HunyuanVaeCodec(hunyuan_vae).encode(np.zeros((*shape, 3), np.uint8))


def test_a_diffusers_folder_is_loaded(
    hunyuan_vae: Any, save_hunyuan_vae: Save, tmp_path: Path
) -> None:
    folder = save_hunyuan_vae(hunyuan_vae, tmp_path / "vae")
    expected = HunyuanVaeCodec(hunyuan_vae).decode_chunk(random_latents(), None)[0]
    for turns in (None, Turns("cpu")):
        codec = load_hunyuan_vae(folder, turns=turns)
        assert torch.equal(codec.decode_chunk(random_latents(), None)[0], expected)
    planned = load_hunyuan_vae(folder, device="meta", dtype=torch.bfloat16)
    assert next(planned.vae.parameters()).is_meta
    assert 2 * planned.num_bytes == codec.num_bytes


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"_class_name": "AutoencoderKLConv3D"}, "config of AutoencoderKLConv3D, not of"),
        ({"block_out_channels": 7}, "holds no config of AutoencoderKLHunyuanVideo15"),
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"latent_channels": 8}, r"another model; wrong shape: .*decoder\.conv_in"),
    ],
)
def test_configs_of_another_model(
    hunyuan_vae: Any,
    save_hunyuan_vae: Save,
    tmp_path: Path,
    settings: dict[str, Any],
    words: str,
) -> None:
    config = save_hunyuan_vae(hunyuan_vae, tmp_path / "vae") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_hunyuan_vae(tmp_path / "vae")
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_all_there(
    hunyuan_vae: Any, save_hunyuan_vae: Save, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_hunyuan_vae(tmp_path)
    folder = save_hunyuan_vae(hunyuan_vae, tmp_path / "vae")
    path = folder / "diffusion_pytorch_model.safetensors"
    state = {key: value.contiguous() for key, value in hunyuan_vae.state_dict().items()}
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="another model; left over: extra"):
        load_hunyuan_vae(folder)
    del state["decoder.conv_in.conv.bias"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"missing: decoder\.conv_in\.conv\.bias"):
        load_hunyuan_vae(folder)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_hunyuan_vae(folder)
