import msgspec
import numpy as np
import pytest
import torch

from qvg_engine import VideoEngine, VideoRequest
from qvg_engine.block_manager.format import PageFormat
from qvg_engine.cache import cache_layout
from qvg_engine.errors import ConfigError, NonFiniteError
from qvg_engine.kernels.rope.layout import to_interleaved
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.comparison import (
    COMPARISON_FORMATS,
    QUALITY_FORMATS,
    quality_format,
    with_centroids,
)
from qvg_engine.quality.format_errors import squared_error
from qvg_engine.quality.recorder import record_video
from qvg_engine.quality.stored import store_rows
from tests.qvg_engine.quality.conftest import CONFIG, PROMPT


def rows(tokens: int = 150, heads: int = 2, head_dim: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tokens, heads, head_dim, generator=generator)


@pytest.mark.parametrize("name", QUALITY_FORMATS)
@pytest.mark.parametrize("is_key", [False, True], ids=["values", "keys"])
def test_bits_are_those_of_the_format(name: str, is_key: bool) -> None:
    page_format = with_centroids(quality_format(name), 7)
    stored = store_rows(rows(), page_format, is_key=is_key, seed=0)
    assert stored.bits_per_element * 128 == 8 * page_format.row_bytes(128, 4)
    codec = page_format.codec
    num_rows = 7 * codec.stages + codec.channel_widths if codec else 0
    codebook = 8 * codec.centroid_bytes * num_rows / 150 if codec else 0
    assert stored.codebook_bits == pytest.approx(codebook)
    assert stored.decoded().shape == (150, 2, 128)


def test_dense_is_lossless_and_bf16_rounds() -> None:
    x = rows()
    assert torch.equal(store_rows(x, quality_format("dense"), is_key=True, seed=0).decoded(), x)
    bf16 = store_rows(x, quality_format("bf16"), is_key=True, seed=0).decoded()
    assert torch.equal(bf16, x.bfloat16().float())


def test_plain_rounding_as_published() -> None:
    """Three levels of the group's largest magnitude; written out."""
    x = rows(head_dim=64)
    stored = store_rows(x, quality_format("rtn2"), is_key=False, seed=0)
    scale = x.abs().amax(dim=-1, keepdim=True).to(torch.float8_e4m3fn).float()
    expected = (x / scale).clamp(-1, 1).round() * scale
    assert torch.equal(stored.decoded(), expected)


def test_searched_rounding_uses_four_levels_and_is_better() -> None:
    x = rows()
    ternary, searched = (
        store_rows(x, quality_format(name), is_key=False, seed=0).decoded()
        for name in ("rtn2", "rtn2-searched")
    )
    assert squared_error(searched, x) < 0.4 * squared_error(ternary, x)
    groups = searched.reshape(-1, 64)
    assert max(len(group.unique()) for group in groups) == 4
    assert max(len(group.unique()) for group in ternary.reshape(-1, 64)) == 3


@pytest.mark.parametrize("name", COMPARISON_FORMATS)
def test_comparison_formats_have_no_codebook(name: str) -> None:
    stored = store_rows(rows(), quality_format(name), is_key=False, seed=0)
    assert stored.codebook_bits == 0
    assert stored.bits_per_element == 2.125


def test_runs_are_the_tokens_asked_for() -> None:
    stored = store_rows(rows(), quality_format("dense"), is_key=False, seed=0)
    run = stored.runs(slice(3, 70), slice(140, 150))
    page, slot, number = run.slots()
    assert np.array_equal(number, [*range(3, 70), *range(140, 150)])
    assert np.array_equal(page * 64 + slot, number)
    assert stored.runs().num_tokens == 0


@pytest.mark.parametrize("name", ["rtn2", "q2"])
def test_it_is_what_an_engine_stores(pocket: ModelFamily, name: str) -> None:
    """The first chunk reads no cache, so its K and V are the same whatever the format."""
    request = VideoRequest(
        request_id="a", prompt=PROMPT, num_frames=12, output="latents", trace=True
    )
    capture = record_video(pocket, CONFIG, request, layers=[2])
    engine = VideoEngine(
        msgspec.structs.replace(CONFIG, kv_format=quality_format(name)), family=pocket
    )
    engine.add_request(request)
    outputs = [output for _ in range(6) for output in engine.step()]
    trace = outputs[-1].trace
    assert trace is not None
    cache = trace.caches[0][2]
    budget = cache_layout(pocket, engine.config).budget
    assert budget is not None
    # The first row holds the widths of `q2`, and nothing of `rtn2`.
    page_format = with_centroids(quality_format(name), budget.rows_per_slot(192) - 1 or 1)
    keys, values = (
        store_rows(part, page_format, is_key=is_key, seed=2 * 2 + (not is_key)).decoded()
        for part, is_key in ((capture.layers[2].keys, True), (capture.layers[2].values, False))
    )
    assert torch.equal(to_interleaved(keys), cache.keys)
    assert torch.equal(values, cache.values)


def test_a_codebook_of_the_first_tokens_does_not_see_the_others() -> None:
    page_format = with_centroids(quality_format("qvg"), 8)
    x = rows()
    x[75:] += 3
    first = store_rows(x, page_format, is_key=False, seed=0, fit_tokens=75).decoded()
    whole = store_rows(x, page_format, is_key=False, seed=0).decoded()
    assert squared_error(first[75:], x[75:]) > 2 * squared_error(whole[75:], x[75:])


def test_rows_that_are_not_finite_are_refused() -> None:
    x = rows()
    x[3, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="values"):
        store_rows(x, quality_format("rtn2"), is_key=False, seed=0)


def test_unknown_formats_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'int3'.*q2.*rtn2"):
        quality_format("int3")


def test_fewer_centroids_change_nothing_else() -> None:
    few = with_centroids(quality_format("q1"), 5)
    assert isinstance(few, PageFormat)
    assert few.codec is not None
    assert few.codec.centroids == 5
    assert few.codec.stages == 2
    assert with_centroids(quality_format("bf16"), 5) is quality_format("bf16")
