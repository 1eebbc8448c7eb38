"""Trains the embedded model's network and vocabulary on a pool of encoded clips.

    python -m qvg_engine.models.pocket.train_network --vae runs/vae.pt --pool runs/pool \\
        --output runs/network.pt --minutes 90

Seeded, and resumable: run the same command again and it goes on from its checkpoint. A round is
one batch of clips; its first step sees them with a soiled context, and once the network is of use
(`--own-context-from`) further steps see the network's own predictions as context, while the target
stays the true clip. That is what keeps long videos from drifting.

On CPUs, one worker a core is faster than one process with as many threads:

    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 \\
        -m qvg_engine.models.pocket.train_network ...
"""

from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
import torch
import typer
from torch import Tensor

from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.models.pocket.batches import (
    LEVELS,
    Batch,
    add_noise,
    draw_batch,
    pick_layout,
    soil_context,
    token_weights,
)
from qvg_engine.models.pocket.clips import DIRECTIONS
from qvg_engine.models.pocket.family import PocketCodec, load_pocket
from qvg_engine.models.pocket.optimizer import MixedOptimizer
from qvg_engine.models.pocket.pool import ClipPool, build_pool
from qvg_engine.models.pocket.teacher_forcing import Layout, PocketModel, TeacherForcing
from qvg_engine.models.pocket.training import (
    Budget,
    Clock,
    load_checkpoint,
    save_checkpoint,
    trapezoid_rate,
)
from qvg_engine.models.pocket.vae import PocketVae
from qvg_engine.models.pocket.vocabulary import Vocabulary, read_prompt
from qvg_engine.models.pocket.workers import Workers
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.network import RMSNorm, WanNetwork

NETWORK: Final = WanConfig(
    dim=256, ffn_dim=768, num_heads=2, num_layers=6, text_dim=64, patch_size=(1, 1, 1)
)
GENERATIONS: Final = 2
"""Steps of a round from then on: each one's context is the last one's prediction."""

OWN_SHARE: Final = 0.7
"""How many of the chunks that could become their own prediction do."""


class NetworkTraining(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one training.

    From the part `decay_from` of the budget the learning rate falls from `peak_rate`; from
    `own_context_from` the network's predictions become context. `long_windows` takes the mixture
    of `LONG_LAYOUTS`; clips whose camera moves in the direction `favour` are drawn more often.
    """

    output: Path
    pool: Path
    budget: Budget
    network: WanConfig = NETWORK
    seed: int = 0
    peak_rate: float = 7e-3
    decay_from: float = 0.6
    own_context_from: float = 0.62
    long_windows: bool = False
    favour: str | None = None
    checkpoint_every_s: float = 180.0
    start_from: Path | None = None


class NetworkTrainer:
    """A training under way: model, optimiser, and how far it is."""

    def __init__(self, settings: NetworkTraining, workers: Workers | None = None) -> None:
        """Begin, or go on from the checkpoint at `settings.output`.

        A training that begins takes its weights from the export in `settings.start_from`, if that
        is given. Each of the `workers` draws clips of its own; gradients are averaged.
        """
        self.settings = settings
        self.workers = workers or Workers()
        torch.manual_seed(settings.seed)
        if settings.start_from is None:
            self.model = new_model(settings.network)
        else:
            self.model = exported_model(settings.start_from)
        self.optimizer = MixedOptimizer(self.model)
        self.model.bfloat16()
        self.pool = ClipPool(settings.pool)
        self.round, self.step, elapsed_s = 0, 0, 0.0
        saved = load_checkpoint(settings.output)
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.round, self.step = saved["round"], saved["step"]
            elapsed_s = saved["elapsed_s"]
        self.clock = Clock(elapsed_s)
        self._report = _Report()

    def train(self) -> PocketModel:
        """Train until the budget is used up; returns the averaged model in fp32."""
        saved_at = self.clock.elapsed_s
        while (progress := self.progress) < 1.0:
            self.run_round(progress)
            if self.clock.elapsed_s - saved_at > self.settings.checkpoint_every_s:
                self.save()
                saved_at = self.clock.elapsed_s
                self.pool.refresh()
        self.save()
        self.workers.wait()
        return averaged_model(self.optimizer.average, self.settings.network)

    @property
    def progress(self) -> float:
        """The part of the budget that is used up, the same for all workers."""
        return self.workers.agree(self.settings.budget.progress(self.step, self.clock.elapsed_s))

    def run_round(self, progress: float) -> None:
        """Train on one batch, with as many generations of context as are due."""
        rng = np.random.default_rng((self.settings.seed, self.round))
        layout = pick_layout(rng, progress=progress, long_windows=self.settings.long_windows)
        if not self.workers.is_first:
            rng = np.random.default_rng((self.settings.seed, self.round, self.workers.rank))
        torch.manual_seed(int(rng.integers(2**62)))
        batch = draw_batch(self.pool, layout, rng, favour=self.settings.favour)
        context = soil_context(batch.chunks)
        generations = GENERATIONS if progress >= self.settings.own_context_from else 1
        for generation in range(generations):
            rate = trapezoid_rate(
                self.settings.peak_rate,
                self.step,
                self.progress,
                decay_from=self.settings.decay_from,
            )
            context = self._train_step(batch, context, rate, generation)
        self.round += 1

    def save(self) -> None:
        """Write a checkpoint, if this is the first worker."""
        if not self.workers.is_first:
            return
        content = {
            "optimizer": self.optimizer.state_dict(),
            "round": self.round,
            "step": self.step,
            "elapsed_s": self.clock.elapsed_s,
        }
        save_checkpoint(self.settings.output, content)

    def _train_step(self, batch: Batch, context: Tensor, rate: float, generation: int) -> Tensor:
        """One update; returns the context with what the network made of the noisy chunks."""
        layout = batch.layout
        prompts = [read_prompt(self.pool.scene(clip).prompt).rows for clip in batch.clips]
        forcing = TeacherForcing(self.model, layout, self.model.text_rows(prompts))
        forcing.read_context(context)
        noisy, indices, target = add_noise(batch.chunks[:, -layout.noisy_chunks :], layout.copies)
        flow = forcing.flow(noisy, torch.tensor(LEVELS)[indices]).float()
        squares = (flow - target).square().mean(dim=4)
        (squares * token_weights(batch)).mean().backward()
        self.workers.average(p.grad for p in self.model.parameters() if p.grad is not None)
        norm = self.optimizer.step(rate)
        self.step += 1
        self._report.add(squares.detach().flatten(3).mean(-1), indices, layout, norm, generation)
        if self.step % 50 == 0 and self.workers.is_first:
            typer.echo(
                f"step {self.step}  rate {rate:.5f}  {self.clock.elapsed_s:.0f} s  "
                f"{self._report.line()}"
            )
        return own_context(context, noisy, flow.detach(), indices)


def fuse_elementwise() -> None:
    """Compile norms and rotations into one loop each, for this whole process.

    Worth a quarter of a step's time on CPUs; needs a C++ compiler and a minute at the start.
    """
    setattr(RMSNorm, "forward", torch.compile(RMSNorm.forward, dynamic=True))  # noqa: B010
    turn = torch.compile(TeacherForcing._turn, dynamic=True)
    setattr(TeacherForcing, "_turn", turn)  # noqa: B010


def own_context(context: Tensor, noisy: Tensor, flow: Tensor, indices: Tensor) -> Tensor:
    """The context with some chunks replaced by the network's x0 at the last two of the levels.

    Copies at noisier levels say too little of the clip: what they become is a blur that no
    rollout would end in, and replaces nothing.
    """
    index, best = indices.max(dim=2)
    tail = (1,) * (noisy.ndim - 3)
    pick = best.view(*best.shape, 1, *tail).expand(-1, -1, 1, *noisy.shape[3:])
    level = torch.tensor(LEVELS)[index].view(*index.shape, *tail)
    x0 = noisy.gather(2, pick)[:, :, 0].float() - level * flow.gather(2, pick)[:, :, 0]
    taken = (index >= len(LEVELS) - 2) & (torch.rand(index.shape) < OWN_SHARE)
    use = taken.view(*index.shape, *tail)
    replaced = context.clone()
    last = context[:, -noisy.shape[1] :]
    replaced[:, -noisy.shape[1] :] = torch.where(use, x0.to(context.dtype), last)
    return replaced


def new_model(config: WanConfig) -> PocketModel:
    """A model with fresh weights whose first prediction is zero."""
    network = WanNetwork(config)
    torch.nn.init.zeros_(network.head.head.weight)
    return PocketModel(network, Vocabulary(config.text_dim))


def exported_model(folder: Path) -> PocketModel:
    """The model that an export holds, in fp32, ready to be trained further.

    Raises `CheckpointError` for files that are missing, corrupt or of another model.
    """
    family = load_pocket(folder=folder)
    assert isinstance(family.prompt_encoder, Vocabulary)
    return PocketModel(family.network, family.prompt_encoder).train().requires_grad_(True)


def averaged_model(average: dict[str, Tensor], config: WanConfig) -> PocketModel:
    """The model with a checkpoint's running average as weights, in fp32, for evaluation."""
    model = new_model(config)
    model.load_state_dict(average)
    return model.eval().requires_grad_(False)


def trained_vae(checkpoint: Path) -> PocketVae:
    """The VAE of a checkpoint of train_vae."""
    saved = load_checkpoint(checkpoint)
    if saved is None:
        raise typer.BadParameter(f"{checkpoint} does not exist: run train_vae first")
    vae = PocketVae()
    vae.load_state_dict(saved["vae"])
    return vae


def exported_vae(folder: Path | None) -> PocketVae:
    """The VAE of an export; of the packaged one if `folder` is None."""
    codec = load_pocket(folder=folder).codec
    assert isinstance(codec, PocketCodec)
    return codec.vae


class _Report:
    """Mean errors per level since the last line, first chunks apart."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, len(LEVELS), 2))
        self._norm = 0.0

    def add(
        self, errors: Tensor, indices: Tensor, layout: Layout, norm: float, generation: int
    ) -> None:
        kind = np.full(errors.shape, 1 if generation == 0 else 2)
        if layout.noisy_chunks == layout.chunks:
            kind[:, 0] = 0
        np.add.at(self._sums[..., 0], (kind, indices.numpy()), errors.numpy())
        np.add.at(self._sums[..., 1], (kind, indices.numpy()), 1.0)
        self._norm = norm

    def line(self) -> str:
        means = self._sums[..., 0] / np.maximum(self._sums[..., 1], 1)
        self._sums[:] = 0
        parts = [
            f"{name} " + " ".join(f"{value:.4f}" for value in row)
            for name, row in zip(("first", "later", "own"), means, strict=True)
        ]
        return "  ".join(parts) + f"  norm {self._norm:.2f}"


def main(
    pool: Annotated[Path, typer.Option(help="Folder of encoded clips; built if needed.")],
    output: Annotated[Path, typer.Option(help="Checkpoint to write, and to resume from.")],
    vae: Annotated[Path | None, typer.Option(help="Checkpoint of train_vae.")] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="Folder of exported weights to go on from, VAE and all."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall-clock budget.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps instead.")] = None,
    clips: Annotated[int, typer.Option(help="Clips in the pool.")] = 4096,
    seed: Annotated[int, typer.Option()] = 0,
    peak_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 7e-3,
    decay_from: Annotated[
        float, typer.Option(help="Part of the budget from which the learning rate falls.")
    ] = 0.6,
    own_context_from: Annotated[
        float, typer.Option(help="Part of the budget from which predictions become context.")
    ] = 0.62,
    long_windows: Annotated[bool, typer.Option(help="Train mostly on full windows.")] = False,
    favour: Annotated[
        str | None, typer.Option(help="A camera direction to draw more often than the others.")
    ] = None,
    fuse: Annotated[bool, typer.Option(help="Compile elementwise work first.")] = False,
) -> None:
    """Train network and vocabulary."""
    keep_freed_memory()
    if favour is not None and favour not in DIRECTIONS:
        raise typer.BadParameter(f"--favour must be one of {', '.join(DIRECTIONS)}, not {favour}")
    if fuse:
        fuse_elementwise()
    if (vae is None) == (start_from is None):
        raise typer.BadParameter("give either --vae or --start-from: one VAE makes all latents")
    coder = trained_vae(vae) if vae is not None else exported_vae(start_from)
    workers = Workers.join()
    if workers.is_first:
        build_pool(pool, coder, num_clips=clips, first_seed=1_000_000)
    workers.wait()
    settings = NetworkTraining(
        output=output,
        pool=pool,
        budget=Budget(minutes=minutes, steps=steps),
        seed=seed,
        peak_rate=peak_rate,
        decay_from=decay_from,
        own_context_from=own_context_from,
        long_windows=long_windows,
        favour=favour,
        start_from=start_from,
    )
    NetworkTrainer(settings, workers).train()


if __name__ == "__main__":
    typer.run(main)
