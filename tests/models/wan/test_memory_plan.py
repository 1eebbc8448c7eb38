"""A plan from headers against what an engine then allocates, and the published sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.block_manager.format import FORMATS
from qvg_engine.cli.app import main
from qvg_engine.errors import ConfigError
from qvg_engine.loading import load_family
from qvg_engine.memory_plan import FormatPlan, plan_memory

STREAMS, FRAMES = 3, 60
Settings = Callable[..., EngineConfig]


def by_format(plan: Any) -> dict[str, FormatPlan]:
    return {item.kv_format: item for item in plan.formats}


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("kv_format", ["dense", "bf16", "qvg-pro", "q2"])
def test_a_plan_is_what_an_engine_allocates(
    wan_folder: Path, wan_settings: Settings, kv_format: str, window: int | None
) -> None:
    config = wan_settings(
        wan_folder, kv_format=kv_format, window_frames=window, max_streams=STREAMS, page_size=16
    )
    plan = plan_memory(
        config,
        load_family(config, headers_only=True),
        num_frames=FRAMES,
        num_streams=STREAMS,
        gpu_bytes=2**34,
    )
    planned = by_format(plan)[kv_format]
    engine = VideoEngine(msgspec.structs.replace(config, kv_memory=planned.kv_bytes))
    rows = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    for index in range(STREAMS):
        request = VideoRequest(request_id=str(index), prompt_embeds=rows + index, num_frames=FRAMES)
        engine.add_request(request)
    most_text = most_decoder = most_running = 0
    while engine.has_unfinished_requests():
        engine.step()
        stats = engine.stats()
        most_text = max(most_text, stats.text_bytes)
        most_decoder = max(most_decoder, stats.decoder_bytes)
        most_running = max(most_running, stats.num_running)
    assert most_running == STREAMS
    assert engine._cache.store.num_bytes == pytest.approx(planned.kv_bytes, rel=0.02)
    assert stats.kv_bytes_peak <= planned.page_bytes
    assert stats.workspace_bytes == plan.workspace_bytes
    assert most_text == plan.text_bytes
    assert most_decoder == plan.decoder_bytes
    family: Any = engine.family
    held = [
        sum(parameter.nbytes for parameter in module.parameters())
        for module in (family.network, family.codec.vae, family.prompt_encoder.model)
    ]
    tied = family.prompt_encoder.model.shared.weight.nbytes
    names = dict(family.prompt_encoder.model.named_parameters())
    held[2] -= tied if {"shared.weight", "encoder.embed_tokens.weight"} <= names.keys() else 0
    assert held == [plan.weights.network, plan.weights.vae, plan.weights.text_encoder]


def published(name: str, **settings: Any) -> Any:
    config = EngineConfig(model=name, dtype="bfloat16", device="cpu", **settings)
    return config, load_family(config, headers_only=True)


def test_published_figures() -> None:
    config, family = published("self-forcing")
    plan = plan_memory(config, family, num_frames=960, num_streams=1, gpu_bytes=80 * 2**30)
    formats = by_format(plan)
    assert tuple(formats) == tuple(FORMATS)
    assert formats["bf16"].bytes_per_token == 184_320
    # A minute: 81 chunks of 4,680 tokens in 74 pages each; nobody reads the last one.
    assert formats["bf16"].kv_bytes == 80 * 74 * 64 * 184_320
    assert plan.weights.network == 2 * 1_418_996_800
    assert plan.text_bytes == 512 * 184_320
    assert plan.decoder_bytes == pytest.approx(1.9e9, rel=0.05)
    assert formats["bf16"].num_streams == 0
    assert formats["q2"].num_streams > formats["q4"].num_streams >= 1
    longest = formats["q2"].longest_frames
    assert longest is not None
    assert longest > 960


def test_what_fits_fits_and_one_more_does_not() -> None:
    config, family = published("longlive")
    plan = plan_memory(config, family, num_frames=960, num_streams=1, gpu_bytes=40 * 2**30)
    for item in plan.formats:
        assert item.longest_frames is None
        left = [
            plan_memory(
                config,
                family,
                num_frames=960,
                num_streams=count,
                gpu_bytes=40 * 2**30,
                kv_formats=(item.kv_format,),
            )
            for count in (item.num_streams, item.num_streams + 1)
        ]
        fits = [one.formats[0].kv_bytes <= one.kv_bytes_left for one in left]
        assert fits == [True, False]


def test_offload_counts_the_largest_part() -> None:
    config, family = published("longlive", offload=True)
    plan = plan_memory(config, family, num_frames=960, num_streams=1, gpu_bytes=2**35)
    assert plan.weights.resident == plan.weights.text_encoder
    assert plan.weights.text_encoder == pytest.approx(2 * 5.68e9, rel=1e-2)


def test_streams_out_of_range() -> None:
    config, family = published("longlive")
    with pytest.raises(ConfigError, match="--streams is 0"):
        plan_memory(config, family, num_frames=9, num_streams=0, gpu_bytes=2**35)


def test_doctor_prints_a_row_a_format(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        [
            *("doctor", "--model", "longlive", "--seconds", "60", "--size", "832x480"),
            *("--streams", "2", "--gpu-memory", "24GiB", "--device", "cpu"),
        ]
    )
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    for words in ("184,320", *FORMATS, "2 videos of 960 frames from longlive", "text encoder"):
        assert words in printed.out
    assert main(["doctor", "--model", "longlive", "--size", "100x90"]) == 2
    assert "give multiples of 8" in capsys.readouterr().err
