"""The memory of a process that makes a windowed video does not grow with the video.

This file is also the program that is measured:

    python tests/qvg_engine/test_process_memory.py 4000 [--keep]

makes a video of so many frames, whose chunks it drops, and prints by how many bytes its memory
grew after the first 240 frames. `--keep` holds on to the frames, to show that growth is seen.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.kernels.host import keep_freed_memory
from qvg_engine.models.pocket.family import load_pocket
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.network import WanNetwork

WARM_UP_FRAMES = 240
FRAME_BYTES = 64 * 64 * 3
SHORT, LONG = 1000, 4000
TOLERANCE = (LONG - SHORT) * FRAME_BYTES // 8
"""An eighth of what the frames that one video has more than the other would take."""


def tiny_family() -> WanFamily:
    """The embedded model's frames, window and VAE around a random network of one layer."""
    pocket = load_pocket()
    torch.manual_seed(0)
    sizes = msgspec.structs.replace(
        pocket.network.config, dim=128, ffn_dim=64, num_heads=1, num_layers=1
    )
    settings = msgspec.structs.replace(pocket.settings, timesteps=(1000.0,))
    network = WanNetwork(sizes).eval().requires_grad_(False)
    return WanFamily(network, settings, codec=pocket.codec, prompt_encoder=pocket.prompt_encoder)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(num_frames: int, *, keep: bool) -> int:
    """Bytes by which the process grows between frame 240 and the end."""
    keep_freed_memory()
    torch.set_num_threads(1)
    config = EngineConfig(kv_format="q2", kv_memory=64 * 2**20, device="cpu")
    engine = VideoEngine(config, family=tiny_family())
    engine.add_request(VideoRequest(request_id="a", prompt="a red circle", num_frames=num_frames))
    made, warm_bytes, kept = 0, 0, []
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None, output.error
            if output.frames is None:
                continue
            made += len(output.frames)
            if keep:
                kept.append(output.frames)
            if not warm_bytes and made >= WARM_UP_FRAMES:
                warm_bytes = resident_bytes()
    assert made == num_frames
    return resident_bytes() - warm_bytes


def growth(num_frames: int, *options: str) -> int:
    command = [sys.executable, str(Path(__file__)), str(num_frames), *options]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(process.stdout)


def test_memory_does_not_grow_with_the_video() -> None:
    short, long = growth(SHORT), growth(LONG)
    assert long - short < TOLERANCE, (short, long)


def test_frames_that_are_kept_are_seen() -> None:
    """Of the long video: a short one's frames may fit into memory that the warm-up has freed."""
    assert growth(LONG, "--keep") > (LONG - WARM_UP_FRAMES) * FRAME_BYTES * 3 // 4


if __name__ == "__main__":
    print(measure(int(sys.argv[1]), keep="--keep" in sys.argv[2:]))
