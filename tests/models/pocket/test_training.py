"""Training: what it computes is what inference does, and stopping it changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.models.pocket.batches import (
    LEVELS,
    SHIFT,
    TIMESTEPS,
    add_noise,
    draw_batch,
    pick_layout,
    token_weights,
)
from qvg_engine.models.pocket.export import export
from qvg_engine.models.pocket.optimizer import orthogonalize
from qvg_engine.models.pocket.pool import ClipPool, build_pool
from qvg_engine.models.pocket.rollout import roll_out
from qvg_engine.models.pocket.teacher_forcing import Layout, PocketModel, TeacherForcing
from qvg_engine.models.pocket.train_network import (
    NetworkTrainer,
    NetworkTraining,
    new_model,
    own_context,
)
from qvg_engine.models.pocket.train_vae import VaeTraining, train
from qvg_engine.models.pocket.training import Budget, trapezoid_rate
from qvg_engine.models.pocket.vae import PocketVae
from qvg_engine.models.pocket.vocabulary import read_prompt
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.reference import DenseAttention, ReferenceSettings, rollout
from qvg_engine.models.wan.sampler import FewStepSampler

TINY = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, patch_size=(1, 1, 1))
PROMPT = "a red circle over a green background, camera moving left"


@pytest.fixture
def model() -> PocketModel:
    torch.manual_seed(1)
    model = new_model(TINY)
    torch.nn.init.normal_(model.network.head.head.weight)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    torch.manual_seed(0)
    build_pool(folder, PocketVae(), num_clips=2)
    return folder


@pytest.mark.parametrize("noisy_chunks", [1, 4])
def test_a_training_pass_computes_what_inference_does(
    model: PocketModel, noisy_chunks: int
) -> None:
    latents = torch.randn(1, 4, 3, 16, 4, 4)
    rows = read_prompt(PROMPT).rows
    layout = Layout(batch=1, chunks=4, noisy_chunks=noisy_chunks, copies=2)
    noisy, indices, _ = add_noise(latents[:, -noisy_chunks:], copies=2)
    forcing = TeacherForcing(model, layout, model.text_rows([rows]))
    forcing.read_context(latents)
    flow = forcing.flow(noisy, torch.tensor(LEVELS)[indices])

    sampler = FewStepSampler(TIMESTEPS, shift=SHIFT, warp_timesteps=True)
    settings = ReferenceSettings(frames_per_chunk=3, sampler=sampler, text_len=16)
    attention = DenseAttention(model.network, model.vocabulary(rows), settings)
    attention.grid = (4, 4)

    def run(chunk: torch.Tensor, timestep: float) -> torch.Tensor:
        timesteps = torch.full((3,), timestep, dtype=torch.float64)
        patches = model.network.patchify(chunk)
        return model.network.unpatchify(
            model.network(patches, timesteps, [16] * 3, attention), 4, 4
        )

    for chunk in range(4):
        attention.first_frame = 3 * chunk
        attention.commit = False
        place = chunk - (4 - noisy_chunks)
        for copy in range(2 if place >= 0 else 0):
            level = LEVELS[int(indices[0, place, copy])]
            expected = run(noisy[0, place, copy], 1000 * level)
            torch.testing.assert_close(flow[0, place, copy], expected, atol=2e-4, rtol=1e-4)
        attention.commit = True
        run(latents[0, chunk], 0.0)


def test_the_lockstep_rollout_equals_the_reference(model: PocketModel) -> None:
    sampler = FewStepSampler(TIMESTEPS, shift=SHIFT, warp_timesteps=True)
    settings = ReferenceSettings(frames_per_chunk=3, sampler=sampler, text_len=16, window_frames=9)
    generator = torch.Generator().manual_seed(5)
    passes = len(TIMESTEPS)
    draws = torch.stack(
        [torch.randn(1, 3, 16, 4, 4, generator=generator) for _ in range(5 * passes)]
    )
    draws = draws[:, 0].view(5, passes, *draws.shape[2:])
    expected = rollout(
        model.network,
        prompt_embeds=model.vocabulary(read_prompt(PROMPT).rows),
        noise=draws[:, 0].flatten(0, 1),
        renoise=draws[:, 1:],
        settings=settings,
    )
    chunks = roll_out(model, [PROMPT], num_chunks=5, seed=5, window_frames=9, size=(4, 4))
    torch.testing.assert_close(torch.cat(list(chunks), 1)[0], expected.latents, atol=1e-3, rtol=0)


def test_a_resumed_training_equals_an_uninterrupted_one(pool: Path, tmp_path: Path) -> None:
    def trainer(name: str) -> NetworkTrainer:
        budget = Budget(steps=6)
        settings = NetworkTraining(output=tmp_path / name, pool=pool, budget=budget, network=TINY)
        return NetworkTrainer(settings)

    whole, first = trainer("whole"), trainer("cut")
    for _ in range(6):
        whole.run_round(whole.progress)
    for _ in range(5):
        first.run_round(first.progress)
    first.save()
    second = trainer("cut")
    assert second.step == first.step > first.round
    while second.round < 6:
        second.run_round(second.progress)
    assert second.step == whole.step
    for name, master in whole.optimizer.masters.items():
        assert torch.equal(master, second.optimizer.masters[name]), name
        assert torch.equal(whole.optimizer.average[name], second.optimizer.average[name]), name
    start = new_model(TINY).state_dict()
    assert not torch.equal(
        whole.optimizer.masters["network.blocks.0.ffn.0.weight"],
        start["network.blocks.0.ffn.0.weight"],
    )


def test_a_resumed_vae_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def settings(name: str, steps: int) -> VaeTraining:
        return VaeTraining(
            output=tmp_path / name, budget=Budget(steps=steps), num_clips=2, batch=1, batch_frames=8
        )

    whole = train(settings("whole", 2))
    again = train(settings("again", 2))
    assert torch.equal(whole.decoder.enter.weight, again.decoder.enter.weight)
    longer = train(settings("again", 4))
    assert not torch.equal(longer.decoder.enter.weight, again.decoder.enter.weight)
    saved = torch.load(tmp_path / "again", weights_only=True)
    assert saved["step"] == 4


def test_own_predictions_replace_context_only_from_the_least_noisy_levels() -> None:
    torch.manual_seed(0)
    context = torch.zeros(8, 3, 3, 2, 1, 1)
    noisy = torch.ones(8, 2, 2, 3, 2, 1, 1)
    flow = torch.full_like(noisy, 2.0)
    indices = torch.tensor([[[2, 1], [3, 0]]]).expand(8, -1, -1)
    assert LEVELS[3] == 0.625
    replaced = own_context(context, noisy, flow, indices)
    assert torch.equal(replaced[:, :2], context[:, :2])
    taken = replaced[:, 2].flatten(1).any(1)
    assert 0 < taken.sum() < 8
    expected = torch.full_like(context[taken, 2], 1 - 2 * 0.625)
    assert torch.equal(replaced[taken, 2], expected)


def test_copies_of_a_chunk_are_at_different_levels() -> None:
    torch.manual_seed(0)
    chunks = torch.randn(2, 5, 3, 4, 2, 2)
    noisy, indices, flow = add_noise(chunks, copies=3)
    assert all(len(set(levels)) == 3 for levels in indices.flatten(0, 1).tolist())
    level = torch.tensor(LEVELS)[indices].view(2, 5, 3, 1, 1, 1, 1)
    torch.testing.assert_close(noisy - level * flow, chunks[:, :, None].expand_as(noisy))


def test_newton_schulz_flattens_singular_values() -> None:
    torch.manual_seed(0)
    for shape in ((2, 64, 96), (2, 96, 64)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.max() < 1.3
        assert values.min() > 0.3


def test_the_rate_warms_up_and_decays() -> None:
    assert trapezoid_rate(1.0, 0, 0.0) == pytest.approx(0.01)
    assert trapezoid_rate(1.0, 500, 0.5) == pytest.approx(1.0)
    assert trapezoid_rate(1.0, 500, 0.8) == pytest.approx(0.5)
    assert trapezoid_rate(1.0, 500, 1.0) == pytest.approx(0.01)


@pytest.mark.parametrize("long_windows", [False, True])
def test_every_layout_fits_a_clip_of_the_pool(pool: Path, long_windows: bool) -> None:
    rng = np.random.default_rng(0)
    draws = [pick_layout(rng, progress=1.0, long_windows=long_windows) for _ in range(100)]
    longest = max(3 * layout.chunks for layout in draws)
    assert 48 < longest <= ClipPool(pool).clip_latents


def test_a_stumbling_camera_is_context_and_never_target(pool: Path) -> None:
    clips = ClipPool(pool)
    rng = np.random.default_rng(0)
    single = Layout(batch=12, chunks=1, noisy_chunks=1, copies=2)
    assert set(draw_batch(clips, single, rng).clips) == {0}
    batch = draw_batch(clips, Layout(batch=12, chunks=4, noisy_chunks=3, copies=2), rng)
    assert set(batch.clips) == {0, 1}
    weighs = token_weights(batch).gt(0).flatten(2)
    assert (weighs == batch.on_pace[:, -3:, None]).all()
    stumbling = torch.tensor(batch.clips) == 1
    assert batch.on_pace[~stumbling].all()
    assert not batch.on_pace[stumbling].all()


@pytest.mark.parametrize(("minutes", "steps"), [(None, None), (1.0, 1), (-1.0, None), (None, 0)])
def test_a_budget_is_one_positive_number(minutes: float | None, steps: int | None) -> None:
    with pytest.raises(ConfigError, match="give one positive number"):
        Budget(minutes=minutes, steps=steps)


def test_a_training_goes_on_from_exported_weights(pool: Path, tmp_path: Path) -> None:
    model = new_model(TINY)
    torch.nn.init.normal_(model.network.head.head.weight, std=0.02)
    export(tmp_path / "weights", model=model, vae=PocketVae())
    settings = NetworkTraining(
        output=tmp_path / "network.pt",
        pool=pool,
        budget=Budget(steps=1),
        network=TINY,
        start_from=tmp_path / "weights",
    )
    trainer = NetworkTrainer(settings)
    for name, value in model.state_dict().items():
        expected = value.bfloat16().float() if name.startswith("network.") else value
        assert torch.equal(trainer.optimizer.masters[name], expected), name
    trainer.train()
    name = "network.blocks.0.ffn.0.weight"
    assert not torch.equal(trainer.optimizer.masters[name], model.state_dict()[name])
