"""Each part's error is that of attention with this part alone in a format."""

import msgspec
import numpy as np
import pytest
import torch

from qvg_engine.block_manager.cache_layout import CacheLayout
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import CacheGeometry, LayerFormats, get_format
from qvg_engine.errors import ConfigError
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.kv_prices import KvPrices, StreamSize
from qvg_engine.quality.part_errors import LayerParts, measure_parts

POLICY = CodebookPolicy()
FORMATS = tuple(get_format(name) for name in ("q1", "q2", "q4"))


@pytest.fixture
def two_layers(capture: Capture) -> Capture:
    """The captured layers as if there were no others."""
    layers = dict(enumerate(capture.layers.values()))
    return msgspec.structs.replace(capture, layers=layers)


def make_prices(num_layers: int) -> KvPrices:
    layout = CacheLayout(
        geometry=CacheGeometry(num_layers=num_layers, num_kv_heads=2, head_dim=128),
        page_size=64,
        formats=(LayerFormats(keys=FORMATS[0], values=FORMATS[0]),),
        compute_itemsize=4,
        codebook_overhead=0.33,
        max_live_codebooks=2,
    )
    size = StreamSize(num_tokens=3072, num_pages=48, num_sets=1, chunk_pages=3)
    return KvPrices(layout, size, candidates=FORMATS, overheads=(0.09, 0.33))


def test_every_part_has_an_error_in_every_format(two_layers: Capture) -> None:
    told: list[tuple[int, int]] = []
    errors = measure_parts(
        (two_layers,),
        make_prices(2),
        POLICY,
        overheads=(0.33,),
        on_part=lambda done, total: told.append((done, total)),
    )
    assert errors.shape == (2, 2, 2, 3)
    assert np.isnan(errors[0]).all(), "this overhead was not asked for"
    assert (np.diff(errors[1], axis=-1) < 0).all(), "finer formats are nearer"
    assert (errors[1] > 0).all()
    assert told == [(done, 4) for done in range(5)]


def test_a_part_is_read_as_the_engine_stores_it(two_layers: Capture) -> None:
    parts = LayerParts((two_layers,), 1, POLICY)
    read = parts.read(FORMATS[1], 15, is_key=False)
    lost = (read - parts.rows.values).square().sum() / parts.rows.values.square().sum()
    assert 0.001 < float(lost) < 0.1
    error = parts.error(FORMATS[1], 15, is_key=False)
    assert error == parts.passes[0].error(parts.rows.keys, read) ** 2
    assert error == parts.error(FORMATS[1], 15, is_key=False), "seeds are the same again"


def test_codebooks_are_fitted_to_what_the_policy_says(two_layers: Capture) -> None:
    """To tokens that were stored before, of as many chunks as the policy has room for."""
    tokens = max(two_layers.chunk_tokens)

    def read(fit_tokens: int) -> torch.Tensor:
        policy = msgspec.structs.replace(POLICY, fit_tokens=fit_tokens, refit_residual=1.0)
        return LayerParts((two_layers,), 1, policy).read(FORMATS[1], 15, is_key=True)

    own, one_more, all_kept = read(0), read(tokens), read(POLICY.fit_tokens)
    assert torch.equal(own[:tokens], all_kept[:tokens]), "the first span has none before it"
    assert not torch.equal(own, one_more)
    assert not torch.equal(one_more, all_kept)
    assert torch.equal(own, read(tokens - 1))


@pytest.mark.parametrize("num_chunks", [2, 3, 5])
def test_the_last_chunk_attends(two_layers: Capture, num_chunks: int) -> None:
    tokens = sum(two_layers.chunk_tokens[:num_chunks])
    layers = {
        number: msgspec.structs.replace(
            layer,
            queries=layer.queries[:tokens],
            keys=layer.keys[:tokens],
            values=layer.values[:tokens],
        )
        for number, layer in two_layers.layers.items()
    }
    short = msgspec.structs.replace(
        two_layers, layers=layers, chunk_tokens=two_layers.chunk_tokens[:num_chunks]
    )
    chunks = LayerParts((short,), 0, POLICY).passes[0].chunks
    assert max(chunks) == num_chunks - 1
    assert min(chunks) >= 1
    assert 1 <= len(chunks) <= 2


def test_all_layers_and_two_chunks_are_needed(capture: Capture, two_layers: Capture) -> None:
    with pytest.raises(ConfigError, match="the capture has layers 1, 4: capture all 6"):
        measure_parts((capture,), make_prices(6), POLICY, overheads=(0.33,))
    short = msgspec.structs.replace(two_layers, chunk_tokens=two_layers.chunk_tokens[:1])
    with pytest.raises(ConfigError, match="give at least 2"):
        measure_parts((short,), make_prices(2), POLICY, overheads=(0.33,))
