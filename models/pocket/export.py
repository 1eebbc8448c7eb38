"""Writes the weights that ship with the package from the checkpoints of both trainings.

    python -m qvg_engine.models.pocket.export --vae runs/vae.pt --network runs/network.pt

The network goes under Wan's published key names and channel order, in bf16; the VAE in fp16 and
the vocabulary in fp32. A reader sees the old files or the new ones: each is written under a
temporary name and renamed.
"""

from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from qvg_engine.errors import CheckpointError
from qvg_engine.models.pocket.batches import SHIFT, TIMESTEPS
from qvg_engine.models.pocket.clips import SIZE
from qvg_engine.models.pocket.family import (
    CONFIG_NAME,
    NETWORK_PREFIX,
    VAE_PREFIX,
    VOCABULARY_PREFIX,
    WEIGHTS_NAME,
    PocketConfig,
)
from qvg_engine.models.pocket.teacher_forcing import FRAMES_PER_CHUNK, PocketModel
from qvg_engine.models.pocket.train_network import (
    NETWORK,
    averaged_model,
    exported_vae,
    trained_vae,
)
from qvg_engine.models.pocket.training import load_checkpoint
from qvg_engine.models.pocket.vae import PocketVae
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.models.wan.layout import to_published

DEFAULT_WINDOW_FRAMES: Final = 48
"""Latent frames of the window, unless a setting says otherwise: the longest it has learned with."""
PACKAGED_WEIGHTS = Path(__file__).parent / "weights"


def export(folder: Path, *, model: PocketModel, vae: PocketVae) -> None:
    """Write weights and config of the embedded model to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    network = model.network.config
    published = to_published(model.network.state_dict(), network.head_dim)
    tensors = (
        _named(NETWORK_PREFIX, published, torch.bfloat16)
        | _named(VAE_PREFIX, vae.state_dict(), torch.float16)
        | _named(VOCABULARY_PREFIX, model.vocabulary.state_dict(), torch.float32)
    )
    config = PocketConfig(
        network=network,
        rollout=RolloutSettings(
            latent_shape=(
                vae.latent_channels,
                SIZE // vae.spatial_factor,
                SIZE // vae.spatial_factor,
            ),
            frames_per_chunk=FRAMES_PER_CHUNK,
            window_frames=DEFAULT_WINDOW_FRAMES,
            timesteps=TIMESTEPS,
            warp_timesteps=True,
            shift=SHIFT,
            text_len=model.vocabulary.text_len,
        ),
    )
    weights_path, config_path = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    save_file(tensors, weights_path.with_suffix(".tmp"))
    weights_path.with_suffix(".tmp").chmod(0o644)
    encoded = msgspec.json.format(msgspec.json.encode(config), indent=2)
    config_path.with_suffix(".tmp").write_bytes(encoded + b"\n")
    weights_path.with_suffix(".tmp").replace(weights_path)
    config_path.with_suffix(".tmp").replace(config_path)


def _named(prefix: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        prefix + key: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for key, value in tensors.items()
    }


def main(
    network: Annotated[Path, typer.Option(help="Checkpoint of train_network.")],
    vae: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of train_vae; without it the packaged VAE stays."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = PACKAGED_WEIGHTS,
) -> None:
    """Export the averaged network, the VAE and the vocabulary."""
    saved_network = load_checkpoint(network)
    if saved_network is None:
        raise CheckpointError(f"{network} does not exist: run train_network first")
    coder = exported_vae(None) if vae is None else trained_vae(vae)
    export(output, model=averaged_model(saved_network["optimizer"]["average"], NETWORK), vae=coder)
    typer.echo(f"step {saved_network['step']} written to {output}")


if __name__ == "__main__":
    typer.run(main)
