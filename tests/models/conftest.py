"""Tiny random parts of published models, as diffusers and transformers make and save them."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

MEAN, STD = [0.3, -0.2, 0.1, 0.5], [1.5, 0.7, 2.0, 1.1]


@pytest.fixture(scope="session")
def wan_vae() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKLWan
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=2,
        latents_mean=MEAN,
        latents_std=STD,
    )
    for name, parameter in vae.named_parameters():
        # Drawn anew where a fresh model is zero or one, so that nothing is trivially right.
        if parameter.ndim == 1 or "gamma" in name:
            torch.nn.init.normal_(parameter, mean=float("gamma" in name), std=0.3)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def hunyuan_vae() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKLHunyuanVideo15
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 16, 16, 32, 32), layers_per_block=1
    )
    for name, parameter in vae.named_parameters():
        if parameter.ndim == 1 or "gamma" in name:
            torch.nn.init.normal_(parameter, mean=float("gamma" in name), std=0.3)
    return vae.eval().requires_grad_(False)


def save_vae_folder(vae: Any, folder: Path) -> Path:
    folder.mkdir()
    state = {key: value.contiguous() for key, value in vae.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    settings = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    config = {"_class_name": type(vae).__name__, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def save_wan_vae() -> Callable[..., Path]:
    return save_vae_folder


@pytest.fixture
def save_hunyuan_vae() -> Callable[..., Path]:
    return save_vae_folder


WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "&", "caf\u00e9"]


@pytest.fixture(scope="session")
def umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=3
    )
    model = UMT5EncoderModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="session")
def umt5_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a published tokenizer's, with words for tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder = tmp_path_factory.mktemp("umt5-xxl")
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def save_umt5_folder(model: Any, folder: Path, sharded: bool = False) -> Path:
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    del state["shared.weight"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    if not sharded:
        save_file(state, folder / "model.safetensors")
        return folder
    names = sorted(state)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / file)
    table = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


@pytest.fixture
def save_umt5() -> Callable[..., Path]:
    return save_umt5_folder
