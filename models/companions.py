"""What a network needs beside it: a VAE, a text encoder and a tokenizer, found on disk."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from qvg_engine.errors import ConfigError

BASE_FOLDERS = (
    "",
    "Wan2.1-T2V-1.3B",
    "wan_models/Wan2.1-T2V-1.3B",
    "Wan2.1-T2V-1.3B-Diffusers",
)
"""Where, within a folder, the base model lies that Wan's descendants share these with."""

_VAES = ("vae/config.json", "Wan2.1_VAE.pth", "taew2_1.safetensors", "taew2_1.pth")
_TEXT_ENCODERS = (
    "text_encoder/config.json",
    "models_t5_umt5-xxl-enc-bf16.safetensors",
    "models_t5_umt5-xxl-enc-bf16.pth",
)
_TOKENIZERS = ("tokenizer/tokenizer_config.json", "google/umt5-xxl/tokenizer_config.json")


class Companions(msgspec.Struct, frozen=True, kw_only=True):
    """Folders or files; None for what is not there."""

    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None


def find_companions(
    folders: Sequence[Path],
    *,
    vae: str | None = None,
    text_encoder: str | None = None,
    tokenizer: str | None = None,
) -> Companions:
    """Those that were given, and for the others the nearest in `folders`.

    Raises `ConfigError` for a path that is not there, and for a text encoder without tokenizer.
    """
    found = Companions(
        vae=_given("vae", vae) or _nearest(folders, _VAES),
        text_encoder=_given("text_encoder", text_encoder) or _nearest(folders, _TEXT_ENCODERS),
        tokenizer=_given("tokenizer", tokenizer) or _nearest(folders, _TOKENIZERS),
    )
    if found.text_encoder is not None and found.tokenizer is None:
        raise ConfigError(
            f"text encoder {found.text_encoder} has no tokenizer beside it: give tokenizer, a "
            "folder as google/umt5-xxl is published"
        )
    return found


def _given(name: str, path: str | None) -> Path | None:
    if path is None:
        return None
    if not Path(path).exists():
        raise ConfigError(f"{name} is {path!r}, which does not exist: give a file or folder")
    return Path(path)


def _nearest(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of `names` in the first folder that has one; of a config, its folder."""
    for folder in folders:
        for base in BASE_FOLDERS:
            for name in names:
                place = folder / base / name
                if place.is_file():
                    return place.parent if place.suffix == ".json" else place
    return None
