"""Formats by layer: their file, the settings that take them, and the engine that stores them."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine
from qvg_engine.allocation import (
    Allocation,
    AllocationOrigin,
    encode_allocation,
    read_allocation,
)
from qvg_engine.block_manager.format import LayerFormats, get_format
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import CodedPages
from qvg_engine.quality.kv_prices import CANDIDATES
from tests.qvg_engine.test_coded_pages import latents

ORIGIN = AllocationOrigin(model="pocket", prompts=("a",), bits=1.75, predicted_error=0.05)
BY_NAME = {item.name: item for item in CANDIDATES}
MIXED = (
    ("q1", "q2"),
    ("q1-lean", "q4"),
    ("q2", "q2-2stages"),
    ("q2-lean", "q1"),
    ("q1", "q1"),
    ("q4", "q2"),
)


def pairs(*names: tuple[str, str]) -> tuple[LayerFormats, ...]:
    known = {**BY_NAME, "bf16": get_format("bf16"), "dense": get_format("dense")}
    return tuple(LayerFormats(keys=known[keys], values=known[values]) for keys, values in names)


MIXED_ALLOCATION = Allocation(layers=pairs(*MIXED), codebook_overhead=0.2)


def make_engine(kv_format: str | Allocation = MIXED_ALLOCATION, **settings: object) -> VideoEngine:
    given = {"kv_memory": 16 * 2**20, "max_streams": 2, "device": "cpu", **settings}
    return VideoEngine(EngineConfig(kv_format=kv_format, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("overhead", [None, 0.18])
@pytest.mark.parametrize("names", [MIXED, (("dense", "q2"), ("bf16", "q1"))])
def test_the_file_says_it_all(
    tmp_path: Path, names: tuple[tuple[str, str], ...], overhead: float | None
) -> None:
    allocation = Allocation(
        layers=pairs(*names), codebook_overhead=overhead, refinement_overhead=0.125
    )
    path = tmp_path / "a.json"
    path.write_bytes(encode_allocation(allocation, ORIGIN))
    assert read_allocation(path) == allocation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"version": 1', '"version": 2'), "has version 2.*reads 1"),
        (lambda text: text.replace('"version": 1', '"version": "x"'), "is no allocation"),
        (lambda text: text[:-20], "is no allocation"),
        (lambda text: "", "is no allocation"),
        (lambda text: text.replace('"bits": 1.75', '"bits": 1.75, "bit": 2'), "bit"),
        (lambda text: text.replace('"stages": 2', '"stages": 99'), "stages is 99"),
        (lambda text: text.replace('"q1": {', '"q9": {'), "names the format 'q1', but has only"),
        (lambda text: text[: text.index('"layers"')] + '"layers": []}', "has no layers"),
        (
            lambda text: text[: text.index('"layers"')] + '"layers": [["q1","q2"],["bf16","q2"]]}',
            "keys of layer 1 are 'bf16'",
        ),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(change(encode_allocation(MIXED_ALLOCATION, ORIGIN).decode()))
    with pytest.raises(ConfigError, match=message):
        read_allocation(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the allocation .*none\.json: No such"):
        read_allocation(tmp_path / "none.json")


def test_an_allocation_is_of_the_models_layers() -> None:
    few = Allocation(layers=pairs(("q2", "q2"), ("q1", "q2")))
    with pytest.raises(ConfigError, match="formats are of 2 layers: the model has 6"):
        make_engine(few)
    with pytest.raises(ConfigError, match="value_format is 'q2', but kv_format is an allocation"):
        EngineConfig(kv_format=few, value_format="q2")


def test_the_settings_overhead_is_the_one_that_holds() -> None:
    assert make_engine()._cache.layout.codebook_overhead == 0.2
    assert make_engine(codebook_overhead=0.3)._cache.layout.codebook_overhead == 0.3
    unsaid = Allocation(layers=pairs(*MIXED))
    assert make_engine(unsaid)._cache.layout.codebook_overhead == 0.33
    assert make_engine(unsaid)._cache.layout.refinement_overhead == 0
    refined = msgspec.structs.replace(unsaid, refinement_overhead=0.1)
    assert make_engine(refined)._cache.layout.refinement_overhead == 0.1
    settings = make_engine(refined, refinement_overhead=0.2)
    assert settings._cache.layout.refinement_overhead == 0.2


def test_the_allocated_bytes_are_the_formula() -> None:
    engine = make_engine()
    layout, store = engine._cache.layout, engine._cache.store
    tensors = []
    for layer, names in enumerate(MIXED):
        pages = store.layer(layer)
        for part, name in ((pages.keys, names[0]), (pages.values, names[1])):
            assert isinstance(part, CodedPages)
            codec = BY_NAME[name].codec
            assert codec is not None
            assert part.spec == codec.for_head_dim(128)
            tensors += [part.codes, part.ids, part.scales, part.codebooks.rows]
    assert sum(x.untyped_storage().nbytes() for x in tensors) == store.num_bytes
    assert store.num_bytes == layout.num_bytes(store.num_pages) <= 16 * 2**20
    row_bytes = sum(BY_NAME[name].row_bytes(128, 4) for names in MIXED for name in names)
    assert layout.page_bytes == 64 * 2 * row_bytes


def test_a_video_follows_the_exact_one_and_takes_what_is_counted() -> None:
    exact = latents(make_engine("bf16"), "a", chunks=4)
    engine = make_engine()
    coded = latents(engine, "a", chunks=4)
    assert torch.equal(coded[:3], exact[:3]), "the first chunk reads no page"
    error = (coded[3:6] - exact[3:6]).square().mean() / exact[3:6].var()
    assert 0 < error < 0.15, error
    layout, peak = engine._cache.layout, engine._cache.peak
    assert layout.budget is not None
    rows = layout.budget.rows_per_set(576)
    counted = 9 * layout.page_bytes + rows * layout.codebook_row_bytes
    assert engine.stats().kv_ratio == peak.bf16_bytes / counted
    assert peak.bf16_bytes == 576 * 4 * layout.geometry.elements(1)


def test_every_layer_is_read_in_its_own_format() -> None:
    fine = latents(make_engine("q4"), "a", chunks=3)[3:6]
    exact = latents(make_engine("bf16"), "a", chunks=3)[3:6]
    base = float((fine - exact).square().mean())
    for layer, part in ((1, "values"), (4, "values")):
        names = [["q4", "q4"] for _ in range(6)]
        names[layer][part == "values"] = "q1-lean"
        mixed = Allocation(layers=pairs(*((keys, values) for keys, values in names)))
        made = latents(make_engine(mixed), "a", chunks=3)[3:6]
        assert float((made - exact).square().mean()) > 2 * base, (layer, part)


def test_the_reference_agrees() -> None:
    ours = latents(make_engine(), "a", chunks=2)
    reference = latents(make_engine(attention_backend="reference"), "a", chunks=2)
    assert torch.allclose(ours, reference, rtol=0, atol=1e-3), (ours - reference).abs().max()


def test_plain_layers_may_be_mixed_too() -> None:
    layers = pairs(*[("bf16", "q1"), ("dense", "q2")] * 3)
    engine = make_engine(Allocation(layers=layers))
    assert engine._cache.layout.num_books == 6
    latents(engine, "a", chunks=3)
    engine.check_integrity()
