"""The device and the sizes that a report measures with."""

from dataclasses import dataclass

import torch

from benchmarks.gpu_sections.timing import FEWEST_RUNS
from qvg_engine.kernels.paged_attention.cost_measurement import Points, measured_points
from qvg_engine.models.wan.config import WanConfig

PAGE_SIZE = 64
FORMATS = ("bf16", "qvg", "qvg-pro", "q2", "q1")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all sections share.

    queries, cached, heads: the sizes of attention; head_dim: of all kernels.
    frame: rows and columns of a latent frame in tokens; chunk: tokens of a chunk, of three frames.
    workspace_tokens: what an engine decodes at once without a window.
    cost_points: the (queries, cached tokens) that the engine's choice of a strategy is fitted to.
    wan: the network of the steps; window_frames: latent frames that its passes see.
    video_streams, video_chunks: how many whole videos are made together, and how long they are.
    copy_bytes, product_size: what bandwidth and arithmetic are measured with.
    """

    device: torch.device
    dtype: torch.dtype
    fewest_runs: int
    queries: tuple[int, ...]
    cached: tuple[int, ...]
    heads: tuple[int, ...]
    head_dim: int
    frame: tuple[int, int]
    chunk: int
    workspace_tokens: int
    cost_points: Points
    streams: tuple[int, ...]
    wan: WanConfig
    window_frames: int
    video_streams: int
    video_chunks: int
    text_rows: int
    copy_bytes: int
    product_size: int


def gpu_setup() -> Setup:
    """Wan 1.3B at 832x480, on the current CUDA device."""
    return Setup(
        device=torch.device("cuda", torch.cuda.current_device()),
        dtype=torch.bfloat16,
        fewest_runs=FEWEST_RUNS,
        queries=(16, 64, 256, 1560, 4680),
        cached=(32 * 1024, 128 * 1024, 512 * 1024),
        heads=(12, 32),
        head_dim=128,
        frame=(30, 52),
        chunk=4680,
        workspace_tokens=32 * 1024,
        cost_points=measured_points(4680),
        streams=(1, 4, 16),
        wan=WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
        # 21 frames of 1,560 tokens: 32,760.
        window_frames=21,
        video_streams=8,
        video_chunks=20,
        text_rows=512,
        copy_bytes=1 << 30,
        product_size=8192,
    )


def dry_setup() -> Setup:
    """The same on a CPU, with sizes for Triton's interpreter."""
    return Setup(
        device=torch.device("cpu"),
        dtype=torch.float32,
        fewest_runs=1,
        queries=(5,),
        cached=(24, 40),
        heads=(2,),
        head_dim=64,
        frame=(2, 4),
        chunk=24,
        workspace_tokens=30,
        cost_points=((64, 24), (64, 40), (128, 40)),
        streams=(1, 2),
        wan=WanConfig(dim=128, ffn_dim=64, num_heads=2, num_layers=2, text_dim=8, freq_dim=16),
        window_frames=9,
        video_streams=2,
        video_chunks=2,
        text_rows=6,
        copy_bytes=1 << 16,
        product_size=64,
    )
