"""The engine with pages of a few bits: what they take, what they refer to, what they cost."""

import numpy as np
import pytest
import torch

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import get_format
from qvg_engine.kernels.codec import CodedPages

CODED = ("qvg", "qvg-pro", "q4", "q2", "q1")
PROMPTS = (
    "a red circle over a green background, camera moving left",
    "a blue square over a yellow background, camera moving up",
)


def make_engine(kv_format: str = "q2", **settings: object) -> VideoEngine:
    defaults = {"kv_memory": 16 * 2**20, "max_streams": 3}
    config = EngineConfig(kv_format=kv_format, **(defaults | settings))  # type: ignore[arg-type]
    return VideoEngine(config)


def latents(engine: VideoEngine, request_id: str, *, chunks: int, seed: int = 0) -> torch.Tensor:
    """A video's latents, all chunks."""
    parts = []
    engine.add_request(
        VideoRequest(
            request_id=request_id,
            prompt=PROMPTS[0],
            num_frames=12 * chunks,
            seed=seed,
            output="latents",
        )
    )
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.error is None, output.error
            if output.latents is not None and output.request_id == request_id:
                parts.append(output.latents)
        engine.check_integrity()
    return torch.cat(parts)


@pytest.mark.parametrize("kv_format", CODED)
def test_every_format_makes_videos_that_follow_the_exact_ones(kv_format: str) -> None:
    exact = latents(make_engine("bf16"), "a", chunks=4)
    coded = latents(make_engine(kv_format), "a", chunks=4)
    assert torch.equal(coded[:3], exact[:3]), "the first chunk reads no page"
    error = (coded[3:6] - exact[3:6]).square().mean() / exact[3:6].var()
    assert 0 < error < 0.15, error


def test_finer_formats_are_nearer() -> None:
    exact = latents(make_engine("bf16"), "a", chunks=3)[3:6]
    errors = [
        float((latents(make_engine(name), "a", chunks=3)[3:6] - exact).square().mean())
        for name in ("q4", "q2", "qvg")
    ]
    assert errors == sorted(errors), errors


def tensors_of(pages: CodedPages) -> list[torch.Tensor]:
    """All that a layer's K or V takes."""
    tensors = [pages.codes, pages.ids, pages.scales, pages.codebooks.rows]
    if pages.refinement is not None:
        tensors += [pages.refinement.codes, pages.refinement.scales]
    return tensors


def test_the_allocated_bytes_are_the_formula() -> None:
    for name in CODED:
        engine = make_engine(name)
        layout, store = engine._cache.layout, engine._cache.store
        rows = layout.codebook_rows(store.num_pages)
        tensors = [
            x.untyped_storage().nbytes()
            for layer in range(layout.geometry.num_layers)
            for pages in (store.layer(layer).keys, store.layer(layer).values)
            if isinstance(pages, CodedPages)
            for x in tensors_of(pages)
        ]
        refined = layout.refinement_overhead > 0
        assert refined == (name in ("q4", "q2", "q1"))
        assert len(tensors) == (6 if refined else 4) * 2 * layout.geometry.num_layers
        assert sum(tensors) == store.num_bytes == layout.num_bytes(store.num_pages)
        spec = get_format(name).codec
        assert spec is not None
        elements = 2 * layout.geometry.elements(64)
        assert layout.page_bytes * 8 == pytest.approx(
            elements * spec.for_head_dim(128).bits_per_element(128)
        )
        refinements = layout.refinement_pages(64 * store.num_pages) * layout.refinement_page_bytes
        more = rows * layout.codebook_row_bytes + refinements
        assert more * 8 <= 0.33 * elements * store.num_pages
        assert store.num_bytes <= 16 * 2**20


@pytest.mark.parametrize("window_frames", [9, 48, None])
def test_codebooks_keep_to_their_overhead(window_frames: int | None) -> None:
    engine = make_engine("q2", window_frames=window_frames)
    overhead = engine._cache.layout.codebook_overhead
    refining = engine._cache.layout.refinement_overhead
    assert overhead + refining == pytest.approx(0.09 if window_frames is None else 0.33)
    latents(engine, "a", chunks=16)
    peak = engine._cache.peak
    elements = peak.bf16_bytes / 2
    assert 0 < peak.codebook_bytes * 8 <= overhead * elements
    assert peak.refinement_bytes * 8 <= refining * elements
    # A page is the least that can be refined: with the full history it takes 5,440 tokens.
    assert (peak.refinement_bytes > 0) == (window_frames == 48)


def newest_refined(engine: VideoEngine) -> list[int]:
    """Pages that are refined now."""
    codebooks = engine._cache.block_manager.codebooks
    assert codebooks is not None
    return [int(page) for page in np.flatnonzero(codebooks.refinements.refinement_of >= 0)]


def test_the_newest_chunk_alone_is_refined() -> None:
    engine = make_engine("q2")
    engine.add_request(
        VideoRequest(request_id="a", prompt=PROMPTS[0], num_frames=240, output="latents")
    )
    seen = set()
    while engine.has_unfinished_requests():
        engine.step()
        engine.check_integrity()
        pages = newest_refined(engine)
        seen |= set(pages)
        assert len(pages) in (0, 3), "a chunk has three pages"
    assert len(seen) > 12, "others, chunk after chunk"
    assert newest_refined(engine) == []


def test_refining_brings_videos_nearer_to_the_exact_one() -> None:
    exact = latents(make_engine("bf16", kv_memory=2**25), "a", chunks=20)

    def error(**settings: float) -> float:
        made = latents(make_engine("q1", **settings), "a", chunks=20)
        return float((made[3:9] - exact[3:9]).square().mean())

    without = error(refinement_overhead=0.0, codebook_overhead=0.33)
    assert error() < 0.6 * without


def test_both_strategies_read_refinements() -> None:
    made = [
        latents(make_engine("q2", attention_backend=backend), "a", chunks=16)[:6]
        for backend in ("workspace", "reference")
    ]
    # The first chunk that reads the cache; later ones grow apart.
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=2e-3)


def test_an_abort_gives_back_pages_slots_and_rows() -> None:
    engine = make_engine("q1")
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(VideoRequest(request_id=str(index), prompt=prompt, num_frames=96))
    for _ in range(9):
        engine.step()
    codebooks = engine._cache.block_manager.codebooks
    assert codebooks is not None
    assert codebooks.pool.num_reserved_rows > 0
    engine.abort_request("0")
    engine.abort_request("1")
    engine.step()
    engine.check_integrity()
    assert codebooks.pool.num_reserved_rows == 0
    assert codebooks.refinements.num_reserved == 0
    assert engine._cache.block_manager.num_used == 0


def test_a_codebook_is_fitted_anew_and_the_old_one_is_freed() -> None:
    policy = CodebookPolicy(first_spans=2, kmeans_iterations=2)
    engine = make_engine("q2", window_frames=9, codebooks=policy)
    engine.add_request(
        VideoRequest(request_id="a", prompt=PROMPTS[0], num_frames=120, output="latents")
    )
    slots_seen = set()
    codebooks = engine._cache.block_manager.codebooks
    assert codebooks is not None
    while engine.has_unfinished_requests():
        engine.step()
        engine.check_integrity()
        bound = codebooks.pool.slot_of_page[0]
        slots_seen |= set(bound[bound >= 0].tolist())
    assert len(slots_seen) == 2


def test_videos_are_bit_equal_alone_and_in_a_batch() -> None:
    alone = latents(make_engine(batch_invariant=True), "a", chunks=4, seed=5)
    engine = make_engine(batch_invariant=True)
    engine.add_request(
        VideoRequest(request_id="b", prompt=PROMPTS[1], num_frames=60, output="latents")
    )
    assert torch.equal(latents(engine, "a", chunks=4, seed=5), alone)


def test_keys_and_values_may_have_different_formats() -> None:
    engine = make_engine("q2", value_format="bf16")
    assert isinstance(engine._cache.store.layer(0).keys, CodedPages)
    assert not isinstance(engine._cache.store.layer(0).values, CodedPages)
    assert engine._cache.layout.num_books == engine.family.geometry.num_layers
    mixed = latents(engine, "a", chunks=3)
    assert np.isfinite(mixed.numpy()).all()
    swapped = make_engine("bf16", value_format="q1")
    latents(swapped, "a", chunks=3)
    assert 1.2 < swapped.stats().kv_ratio < 2


def test_windowed_ratio_of_the_formats() -> None:
    for name, least in (("q2", 6.0), ("qvg", 6.0), ("q1", 9.0)):
        engine = make_engine(name, max_streams=1)
        latents(engine, "a", chunks=18)
        assert engine.stats().kv_ratio >= least, name
