"""What the export writes is what the engine loads."""

from pathlib import Path

import pytest
import torch

from qvg_engine.errors import CheckpointError
from qvg_engine.models.pocket.export import DEFAULT_WINDOW_FRAMES, export
from qvg_engine.models.pocket.family import PocketCodec, load_pocket
from qvg_engine.models.pocket.teacher_forcing import PocketModel
from qvg_engine.models.pocket.train_network import new_model
from qvg_engine.models.pocket.vae import PocketVae
from qvg_engine.models.wan.config import WanConfig

TINY = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=1, text_dim=8, patch_size=(1, 1, 1))
PROMPT = "a red circle over a green background, camera moving left"


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, PocketModel, PocketVae]:
    torch.manual_seed(0)
    model, vae = new_model(TINY).eval(), PocketVae().eval()
    export(tmp_path, model=model, vae=vae)
    return tmp_path, model, vae


def test_network_vae_and_vocabulary_survive(exported: tuple[Path, PocketModel, PocketVae]) -> None:
    folder, model, vae = exported
    family = load_pocket(folder=folder)
    for name, value in model.network.state_dict().items():
        loaded = family.network.state_dict()[name]
        assert torch.equal(loaded, value.bfloat16().float()), name
    assert isinstance(family.codec, PocketCodec)
    latents = torch.randn(3, 16, 8, 8)
    expected = vae.decode_chunk(latents)[0].int()
    frames = family.codec.decode_chunk(latents, None)[0].int()
    assert (frames - expected).abs().max() <= 1
    assert family.prompt_encoder is not None
    rows, unknown = family.prompt_encoder.encode(PROMPT)
    assert torch.equal(rows, model.vocabulary.encode(PROMPT)[0])
    assert unknown == ()
    assert family.settings.window_frames == DEFAULT_WINDOW_FRAMES


def test_nothing_is_left_beside_the_two_files(
    exported: tuple[Path, PocketModel, PocketVae],
) -> None:
    folder, _, _ = exported
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pocket.safetensors"]


def test_truncated_weights_are_refused(exported: tuple[Path, PocketModel, PocketVae]) -> None:
    folder, _, _ = exported
    path = folder / "pocket.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_pocket(folder=folder)
