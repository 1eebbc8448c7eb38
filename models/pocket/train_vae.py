"""Trains the embedded model's VAE on drawn clips.

    python -m qvg_engine.models.pocket.train_vae --minutes 9 --output runs/vae.pt

Seeded, and resumable: run the same command again and it goes on from its checkpoint. Every step
draws from a generator keyed by (seed, step), so a training of N steps that was stopped and
resumed equals one that was not.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.models.pocket.clips import SIZE, draw_clip
from qvg_engine.models.pocket.training import (
    Budget,
    Clock,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
)
from qvg_engine.models.pocket.vae import PocketVae


class VaeTraining(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one training; `latent_noise` is the most noise added before decoding.

    With `decoder_only` the encoder and the latents' statistics stay as they are, so that a
    network that was trained on them fits the better decoder as well.
    """

    output: Path
    budget: Budget
    seed: int = 0
    num_clips: int = 768
    frames_per_clip: int = 36
    batch: int = 16
    batch_frames: int = 12
    peak_rate: float = 1.5e-3
    latent_noise: float = 0.12
    decoder_only: bool = False
    device: str = "cpu"
    checkpoint_every_s: float = 60.0


def train(settings: VaeTraining) -> PocketVae:
    """Train until the budget is used up and return the VAE in evaluation mode."""
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    vae = PocketVae().to(device)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=settings.peak_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    saved = load_checkpoint(settings.output)
    step = 0
    clock = Clock(saved["elapsed_s"] if saved else 0.0)
    if saved:
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    if settings.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.normalize.eval()
    clips = _draw_clips(settings)
    saved_at = clock.elapsed_s
    while (progress := settings.budget.progress(step, clock.elapsed_s)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings.peak_rate, step, progress)
        error = _train_step(vae, optimizer, _batch(clips, settings, step).to(device), settings)
        step += 1
        if step % 50 == 0:
            psnr = 10 * np.log10(4 / error.item())
            typer.echo(f"step {step}  {100 * progress:.1f} %  PSNR {psnr:.2f} dB")
        if clock.elapsed_s - saved_at > settings.checkpoint_every_s:
            _save(settings, vae, optimizer, step, clock)
            saved_at = clock.elapsed_s
    _save(settings, vae, optimizer, step, clock)
    vae.eval()
    return vae


def _train_step(
    vae: PocketVae, optimizer: torch.optim.Optimizer, frames: Tensor, settings: VaeTraining
) -> Tensor:
    """One update; returns the squared error of the decoded frames."""
    with torch.autocast(frames.device.type, torch.bfloat16):
        latents = vae.encode(frames)
        # Each video has its own noise level, so that decoding forgives a network's errors.
        level = settings.latent_noise * torch.rand(len(latents), 1, 1, 1, 1).to(latents)
        noise = torch.randn(latents.shape).to(latents)
        decoded, _ = vae.decode(latents + level * noise)
    difference = decoded.float() - frames
    error = difference.square().mean()
    loss = error + 0.05 * functional.l1_loss(decoded.float(), frames)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return error.detach()


def _draw_clips(settings: VaeTraining) -> NDArray[np.uint8]:
    frames = settings.frames_per_clip
    clips = np.empty((settings.num_clips, frames, SIZE, SIZE, 3), dtype=np.uint8)
    for index in range(settings.num_clips):
        clips[index] = draw_clip(settings.seed * 1_000_003 + index, num_frames=frames).frames
    return clips


def _batch(clips: NDArray[np.uint8], settings: VaeTraining, step: int) -> Tensor:
    """Frames [batch, batch_frames, 3, SIZE, SIZE] in -1..1 of one step."""
    rng = np.random.default_rng((settings.seed, step))
    torch.manual_seed(int(rng.integers(2**62)))
    which = rng.integers(len(clips), size=settings.batch)
    starts = rng.integers(clips.shape[1] - settings.batch_frames + 1, size=settings.batch)
    frames = np.stack(
        [clips[i, s : s + settings.batch_frames] for i, s in zip(which, starts, strict=True)]
    )
    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def _save(
    settings: VaeTraining,
    vae: PocketVae,
    optimizer: torch.optim.Optimizer,
    step: int,
    clock: Clock,
) -> None:
    content = {
        "vae": vae.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "elapsed_s": clock.elapsed_s,
    }
    save_checkpoint(settings.output, content)


def main(
    output: Annotated[Path, typer.Option(help="Checkpoint to write, and to resume from.")],
    minutes: Annotated[float | None, typer.Option(help="Wall-clock budget.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps instead.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    decoder_only: Annotated[bool, typer.Option(help="Leave the latents as they are.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the VAE on drawn clips."""
    keep_freed_memory()
    budget = Budget(minutes=minutes, steps=steps)
    settings = VaeTraining(
        output=output, budget=budget, seed=seed, decoder_only=decoder_only, device=device
    )
    train(settings)


if __name__ == "__main__":
    typer.run(main)
