"""How good the embedded model's videos are: adherence, life, and memory, read from pixels.

    python benchmarks/pocket_quality.py --output reports

writes `pocket_quality.md` and `pocket_quality.json`. Videos come from the engine; with
`--network` and `--vae`, checkpoints of a training under way, from its stand-alone rollout.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.models.pocket.clips import Scene, all_scenes, draw_clip
from qvg_engine.models.pocket.family import PocketCodec, load_pocket
from qvg_engine.models.pocket.judge import ATTRIBUTES, is_alive, judge_video
from qvg_engine.models.pocket.memory import revisits
from qvg_engine.models.pocket.rollout import decode_rollout, roll_out
from qvg_engine.models.pocket.train_network import NETWORK, averaged_model
from qvg_engine.models.pocket.vae import PocketVae

Frames = NDArray[np.uint8]
Generate = Callable[[Sequence[str], int, int], list[Frames]]
"""(prompts, frames, window in latent frames) -> videos [T, H, W, 3]."""

WINDOWS = (9, 18, 36, 48)
FRAMES_PER_CHUNK = 12
"""Pixel frames of a chunk."""


def engine_videos(dtype: Literal["float32", "bfloat16"]) -> Generate:
    """Videos as a user of the engine gets them."""

    def generate(prompts: Sequence[str], num_frames: int, window: int) -> list[Frames]:
        config = EngineConfig(
            model="pocket", window_frames=window, max_streams=len(prompts), dtype=dtype
        )
        videos = VideoEngine(config).generate(prompts, num_frames=num_frames, seed=1)
        return [video.frames for video in videos]

    return generate


def checkpoint_videos(network: Path, vae: PocketVae) -> Generate:
    """Videos from a checkpoint of a training, without the engine."""
    saved = torch.load(network, map_location="cpu", weights_only=True)
    model = averaged_model(saved["optimizer"]["average"], NETWORK).bfloat16()

    def generate(prompts: Sequence[str], num_frames: int, window: int) -> list[Frames]:
        chunks = -(-num_frames // FRAMES_PER_CHUNK)
        latents = list(roll_out(model, prompts, num_chunks=chunks, seed=1, window_frames=window))
        return list(decode_rollout(vae, latents)[:, :num_frames])

    return generate


def adherence(videos: Sequence[Frames], scenes: Sequence[Scene], *, every: int) -> dict[str, float]:
    """Share of sampled frames in which each attribute, and all of them, are as prompted."""
    matches = [
        list(verdict.matches(scene).values())
        for video, scene in zip(videos, scenes, strict=True)
        for verdict in judge_video(video, every=every)
    ]
    table = np.asarray(matches, dtype=float)
    shares = {name: float(table[:, i].mean()) for i, name in enumerate(ATTRIBUTES)}
    return shares | {"all": float(table.all(axis=1).mean()), "sampled_frames": float(len(table))}


def check_judge(vae: PocketVae, *, clips: int = 100) -> dict[str, Any]:
    """The judge's scores on real clips, on the same through the VAE, and on wrong prompts."""
    rng = np.random.default_rng(0)
    scenes = all_scenes()
    real = [draw_clip(70_000_000 + seed, num_frames=48) for seed in range(clips)]
    decoded = [
        vae.decode_chunk(vae.encode_chunk(torch.from_numpy(clip.frames))[0])[0].numpy()
        for clip in real
    ]
    others = []
    for clip in real:
        wrong = [scene for scene in scenes if scene != clip.scene]
        others.append(wrong[int(rng.integers(len(wrong)))])
    squares = [
        np.square(clip.frames.astype(np.float32) - again).mean()
        for clip, again in zip(real, decoded, strict=True)
    ]
    truth, frames = [clip.scene for clip in real], [clip.frames for clip in real]
    return {
        "real": adherence(frames, truth, every=12),
        "through_vae": adherence(decoded, truth, every=12),
        "wrong_prompt": adherence(frames, others, every=12),
        "vae_psnr_db": float(np.mean(10 * np.log10(255**2 / np.asarray(squares)))),
    }


def life(videos: Sequence[Frames], *, stretch: int = 96) -> dict[str, float]:
    """Share of stretches that are alive, and of videos whose last stretch is."""
    alive = [
        [is_alive(video[t : t + stretch]) for t in range(0, len(video) - stretch + 1, stretch)]
        for video in videos
    ]
    return {
        "stretches": float(np.mean([value for video in alive for value in video])),
        "last_stretches": float(np.mean([video[-1] for video in alive])),
    }


def memory(videos: Sequence[Frames], scenes: Sequence[Scene]) -> dict[str, float]:
    """PSNR of revisited ground against its first sight, mean over all looks."""
    looks = [
        look
        for video, scene in zip(videos, scenes, strict=True)
        for look in revisits(video, scene.direction)
    ]
    if not looks:
        return {"looks": 0.0}
    return {
        "looks": float(len(looks)),
        "revisited_db": float(np.mean([look.db for look in looks])),
        "median_db": float(np.median([look.db for look in looks])),
        "other_ground_db": float(np.mean([look.other_db for look in looks])),
    }


def real_memory(vae: PocketVae, *, clips: int) -> dict[str, float]:
    """The same measure on real clips through the VAE: what a perfect memory would get."""
    real = [draw_clip(71_000_000 + seed, num_frames=480) for seed in range(clips)]
    decoded = [
        vae.decode_chunk(vae.encode_chunk(torch.from_numpy(clip.frames))[0])[0].numpy()
        for clip in real
    ]
    return memory(decoded, [clip.scene for clip in real])


def markdown(report: dict[str, Any]) -> str:
    """The report as two tables and a few lines."""
    rows = {
        f"generated, {report['num_frames']} frames": report["adherence"],
        "real clips": report["judge"]["real"],
        "real clips through the VAE": report["judge"]["through_vae"],
        "real clips, wrong prompt": report["judge"]["wrong_prompt"],
    }
    lines = [
        "# Quality of the embedded model",
        "",
        f"{report['num_prompts']} prompts, {report['num_frames']} frames each ({report['dtype']}), "
        f"window of {report['window_frames']} latent frames, "
        f"{report['adherence']['sampled_frames']:.0f} frames judged. VAE: "
        f"{report['judge']['vae_psnr_db']:.2f} dB PSNR. Alive: "
        f"{report['life']['stretches']:.1%} of all stretches of 96 frames, "
        f"{report['life']['last_stretches']:.1%} of the last ones.",
        "",
        "| found in the frames | " + " | ".join((*ATTRIBUTES, "all four")) + " |",
        "| --- |" + " ---: |" * (len(ATTRIBUTES) + 1),
    ]
    for name, shares in rows.items():
        cells = [f"{shares[key]:.1%}" for key in (*ATTRIBUTES, "all")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| window (latent frames) | all four | PSNR of revisited ground | other ground | looks |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, entry in report["memory"].items():
        by_window = report["by_window"].get(name)
        found = f"{by_window['all']:.1%}" if by_window else ""
        if entry["looks"]:
            lines.append(
                f"| {name} | {found} | {entry['revisited_db']:.2f} dB "
                f"| {entry['other_ground_db']:.2f} dB | {entry['looks']:.0f} |"
            )
        else:
            lines.append(f"| {name} | {found} | the camera never completed a lap | | 0 |")
    return "\n".join(lines) + "\n"


def main(
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    prompts: Annotated[int, typer.Option()] = 50,
    num_frames: Annotated[int, typer.Option(help="Frames of each judged video.")] = 1008,
    memory_prompts: Annotated[int, typer.Option(help="Videos a window.")] = 10,
    memory_frames: Annotated[int, typer.Option()] = 480,
    window: Annotated[int, typer.Option(help="Latent frames, for the judged videos.")] = 18,
    every: Annotated[int, typer.Option(help="Judge every so many frames.")] = 16,
    together: Annotated[int, typer.Option(help="Streams at the same time.")] = 10,
    bfloat16: Annotated[bool, typer.Option(help="Compute in bf16 instead of fp32.")] = False,
    network: Annotated[Path | None, typer.Option(help="Checkpoint of train_network.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Checkpoint of train_vae.")] = None,
) -> None:
    """Measure and write the report."""
    keep_freed_memory()
    coder = _packaged_coder() if vae is None else _coder(vae)
    in_engine = engine_videos("bfloat16" if bfloat16 else "float32")
    generate = in_engine if network is None else checkpoint_videos(network, coder)
    order = np.random.default_rng(1).permutation(len(all_scenes()))
    scenes = [all_scenes()[i] for i in order[:prompts]]

    def videos(chosen: Sequence[Scene], frames: int, window: int) -> list[Frames]:
        made: list[Frames] = []
        for start in range(0, len(chosen), together):
            texts = [scene.prompt for scene in chosen[start : start + together]]
            made += generate(texts, frames, window)
            typer.echo(f"window {window}: {len(made)} of {len(chosen)} videos")
        return made

    start = time.perf_counter()
    judged = videos(scenes, num_frames, window)
    report: dict[str, Any] = {
        "num_prompts": prompts,
        "num_frames": num_frames,
        "dtype": "bfloat16" if bfloat16 or network is not None else "float32",
        "adherence": adherence(judged, scenes, every=every),
        "life": life(judged),
        "judge": check_judge(coder),
        "window_frames": window,
        "by_window": {},
        "memory": {},
    }
    remembered = scenes[:memory_prompts]
    for size in WINDOWS:
        if size == window:
            made = [video[:memory_frames] for video in judged[:memory_prompts]]
        else:
            made = videos(remembered, memory_frames, size)
        report["by_window"][str(size)] = adherence(made, remembered, every=every)
        report["memory"][str(size)] = memory(made, remembered)
    report["memory"]["real clips"] = real_memory(coder, clips=memory_prompts)
    report["wall_s"] = time.perf_counter() - start
    output.mkdir(parents=True, exist_ok=True)
    (output / "pocket_quality.json").write_text(json.dumps(report, indent=2) + "\n")
    (output / "pocket_quality.md").write_text(markdown(report))
    typer.echo(markdown(report))


def _packaged_coder() -> PocketVae:
    codec = load_pocket().codec
    assert isinstance(codec, PocketCodec)
    return codec.vae


def _coder(path: Path) -> PocketVae:
    coder = PocketVae()
    coder.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["vae"])
    return coder.eval()


if __name__ == "__main__":
    typer.run(main)
