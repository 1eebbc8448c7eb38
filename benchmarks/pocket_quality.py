"""How good the embedded model's videos are: adherence, life, and memory, read from pixels.

    python benchmarks/pocket_quality.py --output reports

writes `pocket_quality.md` and `pocket_quality.json`. Videos come from the engine; with
`--network` and `--vae`, checkpoints of a training under way, from its stand-alone rollout.

    python benchmarks/pocket_quality.py --kv-format bf16 --kv-format q2 --output reports

makes the same videos in each format, compares the others with the first, and writes
`pocket_formats.md` and `pocket_formats.json`. The figures of every video are kept in the folder, so
that a run that was stopped goes on where it was.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
import typer

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.models.pocket.clips import Scene, all_scenes, draw_clip
from qvg_engine.models.pocket.family import PocketCodec, load_pocket
from qvg_engine.models.pocket.judge import ATTRIBUTES
from qvg_engine.models.pocket.memory import revisits
from qvg_engine.models.pocket.rollout import decode_rollout, roll_out
from qvg_engine.models.pocket.train_network import NETWORK, averaged_model
from qvg_engine.models.pocket.vae import PocketVae
from qvg_engine.quality.checksum import checksum, packaged_checksum
from qvg_engine.quality.files import write_whole
from qvg_engine.quality.pocket_videos import (
    KEYS,
    STRETCH,
    Frames,
    Generate,
    JudgedVideo,
    Sampling,
    adherence,
    compare,
    comparison_text,
    judged_videos,
)

WINDOWS = (9, 18, 36, 48)
FRAMES_PER_CHUNK = 12
"""Pixel frames of a chunk."""


def engine_videos(dtype: Literal["float32", "bfloat16"], *, kv_format: str) -> Generate:
    """Videos as a user of the engine gets them."""

    def generate(prompts: Sequence[str], num_frames: int, window: int) -> list[Frames]:
        config = EngineConfig(
            model="pocket",
            window_frames=window,
            max_streams=len(prompts),
            dtype=dtype,
            kv_format=kv_format,
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
        f"window of {report['window_frames']} latent frames, {report['kv_format']} pages, "
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
    num_frames: Annotated[
        int, typer.Option(min=STRETCH, help="Frames of each judged video.")
    ] = 1008,
    memory_prompts: Annotated[int, typer.Option(help="Videos a window.")] = 10,
    memory_frames: Annotated[int, typer.Option()] = 480,
    window: Annotated[int, typer.Option(help="Latent frames, for the judged videos.")] = 48,
    every: Annotated[int, typer.Option(help="Judge every so many frames.")] = 16,
    together: Annotated[int, typer.Option(help="Streams at the same time.")] = 10,
    bfloat16: Annotated[bool, typer.Option(help="Compute in bf16 instead of fp32.")] = False,
    network: Annotated[Path | None, typer.Option(help="Checkpoint of train_network.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Checkpoint of train_vae.")] = None,
    kv_format: Annotated[
        list[str] | None,
        typer.Option(help="Format of the pages, bf16 unless given; several are compared."),
    ] = None,
) -> None:
    """Measure and write the report."""
    keep_freed_memory()
    order = np.random.default_rng(1).permutation(len(all_scenes()))
    scenes = [all_scenes()[i] for i in order[:prompts]]
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if bfloat16 else "float32"
    formats = kv_format or ["bf16"]
    if network is not None and kv_format:
        raise typer.BadParameter("a checkpoint is rolled out without pages: leave it out")
    if len(set(formats)) < len(formats):
        raise typer.BadParameter("--kv-format names a format twice: name each once")
    sampling = Sampling(
        kv_format=formats[0] if network is None else "checkpoint",
        num_frames=num_frames,
        window_frames=window,
        every=every,
        together=together,
        dtype=dtype if network is None else "bfloat16",
        weights=packaged_checksum() if network is None else checksum(network),
    )
    output.mkdir(parents=True, exist_ok=True)
    if len(formats) > 1:
        write_comparison(formats, scenes, sampling, output)
        return
    coder = _packaged_coder() if vae is None else _coder(vae)
    in_engine = engine_videos(dtype, kv_format=formats[0])
    generate = in_engine if network is None else checkpoint_videos(network, coder)

    def videos(chosen: Sequence[Scene], frames: int, window: int) -> list[Frames]:
        made: list[Frames] = []
        for start in range(0, len(chosen), together):
            texts = [scene.prompt for scene in chosen[start : start + together]]
            made += generate(texts, frames, window)
            typer.echo(f"window {window}: {len(made)} of {len(chosen)} videos")
        return made

    start = time.perf_counter()
    judged = _judged(generate, scenes, sampling, output)
    shares = {key: float(np.mean([video.shares[key] for video in judged])) for key in KEYS}
    report: dict[str, Any] = {
        "num_prompts": prompts,
        "num_frames": num_frames,
        "dtype": sampling.dtype,
        "kv_format": formats[0] if network is None else "no",
        "adherence": shares
        | {"sampled_frames": sum(video.shares["sampled_frames"] for video in judged)},
        "life": shares,
        "judge": check_judge(coder),
        "window_frames": window,
        "by_window": {},
        "memory": {},
    }
    remembered = scenes[:memory_prompts]
    for size in WINDOWS:
        made = videos(remembered, memory_frames, size)
        report["by_window"][str(size)] = adherence(made, remembered, every=every)
        report["memory"][str(size)] = memory(made, remembered)
    report["memory"]["real clips"] = real_memory(coder, clips=memory_prompts)
    report["wall_s"] = time.perf_counter() - start
    write_whole(output / "pocket_quality.json", json.dumps(report, indent=2).encode() + b"\n")
    write_whole(output / "pocket_quality.md", markdown(report).encode())
    typer.echo(markdown(report))


def write_comparison(
    formats: Sequence[str], scenes: Sequence[Scene], sampling: Sampling, output: Path
) -> None:
    """Judge the videos of every format, and write how they compare."""
    by_format = {
        name: _judged(
            engine_videos(sampling.dtype, kv_format=name),
            scenes,
            msgspec.structs.replace(sampling, kv_format=name),
            output,
        )
        for name in formats
    }
    report = compare(by_format, sampling)
    write_whole(output / "pocket_formats.json", json.dumps(report, indent=2).encode() + b"\n")
    write_whole(output / "pocket_formats.md", comparison_text(report).encode())
    typer.echo(comparison_text(report))


def _judged(
    generate: Generate, scenes: Sequence[Scene], sampling: Sampling, output: Path
) -> list[JudgedVideo]:
    """Judge videos, going on where an earlier run into the same folder was stopped."""
    name = sampling.kv_format

    def report_progress(done: int) -> None:
        typer.echo(f"{name}: {done} of {len(scenes)} videos")

    path = output / f"pocket_videos-{name}.json"
    return judged_videos(generate, scenes, sampling, path, on_batch=report_progress)


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
