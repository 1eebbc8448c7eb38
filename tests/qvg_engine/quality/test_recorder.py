import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from qvg_engine import VideoEngine, VideoRequest
from qvg_engine.block_manager.format import CacheGeometry
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.rope.layout import to_interleaved
from qvg_engine.models.attention import Attention
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.capture import Capture
from qvg_engine.quality.format_errors import LayerErrors
from qvg_engine.quality.recorder import (
    RecordingFamily,
    _run,
    record_frames,
    record_passes,
    record_video,
)
from qvg_engine.quality.recording_attention import RecordingAttention
from qvg_engine.quality.teacher_forced import TeacherForced
from tests.conftest import Toy
from tests.qvg_engine.quality.conftest import CONFIG, LAYERS, PROMPT


def test_a_capture_is_what_a_trace_says(toy: Toy) -> None:
    """With `dense` pages a trace's caches are the committed K and V, untouched."""
    engine = toy.engine()
    request = toy.request("a", chunks=3, trace=True)
    engine.add_request(request)
    trace = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            trace = output.trace or trace
    assert trace is not None
    capture = record_video(toy.family(), engine.config, request)
    assert np.array_equal(capture.positions, trace.token_numbers[0])
    assert list(capture.layers) == [0, 1]
    for layer, cache in zip(capture.layers.values(), trace.caches[0], strict=True):
        assert torch.equal(to_interleaved(layer.keys), cache.keys)
        assert torch.equal(layer.values, cache.values)


class _Listening:
    """A family that keeps what attention returned to layer 0, pass by pass."""

    def __init__(self, family: ModelFamily) -> None:
        self._inner = family
        self.outputs: list[Tensor] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def forward(self, passes: object, attention: Attention, *, batch_invariant: bool) -> object:
        outputs = self.outputs

        class Ear:
            def self_attention(
                self, layer: int, queries: Tensor, keys: Tensor, values: Tensor
            ) -> Tensor:
                result = attention.self_attention(layer, queries, keys, values)
                if layer == 0:
                    outputs.append(result.clone())
                return result

            def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
                return attention.cross_attention(layer, queries)

        return self._inner.forward(passes, Ear(), batch_invariant=batch_invariant)  # type: ignore[arg-type]


@pytest.mark.parametrize(("window", "sink"), [(None, 0), (6, 0), (7, 1)])
def test_teacher_forced_attention_is_the_engines_own(
    toy: Toy, window: int | None, sink: int
) -> None:
    """Windows, sinks, positions and rotation: on exact pages it returns what the network got."""
    settings = {"window_frames": window, "sink_frames": sink}
    listening = _Listening(toy.family(**settings))
    config = toy.engine().config
    request = toy.request("a", chunks=4, trace=True)
    capture = record_video(listening, config, request)  # type: ignore[arg-type]
    steps = len(listening._inner.settings.timesteps)
    commits = listening.outputs[steps :: steps + 1]
    assert len(commits) == 4
    exact = LayerErrors(capture, 0).exact_outputs()
    for computed, heard in zip(exact, commits[1:], strict=True):
        torch.testing.assert_close(computed, heard, rtol=1e-5, atol=1e-6)


def test_a_capture_says_where_it_comes_from(capture: Capture, pocket: ModelFamily) -> None:
    assert tuple(capture.layers) == LAYERS
    assert capture.chunk_tokens == (192,) * 5
    assert capture.info.window_tokens == 9 * 64
    assert (capture.info.prompt, capture.info.seed, capture.info.grid) == (PROMPT, 3, (8, 8))
    for layer in capture.layers.values():
        assert layer.queries.shape == layer.keys.shape == layer.values.shape == (960, 2, 128)


def test_recording_changes_nothing(pocket: ModelFamily) -> None:
    def latents(family: ModelFamily) -> Tensor:
        engine = VideoEngine(CONFIG, family=family)
        engine.add_request(
            VideoRequest(request_id="a", prompt=PROMPT, num_frames=24, output="latents")
        )
        parts = []
        while engine.has_unfinished_requests():
            parts += [out.latents for out in engine.step() if out.latents is not None]
        return torch.cat(parts)

    assert torch.equal(latents(pocket), latents(RecordingFamily(pocket)))


def test_layers_that_there_are_not_are_refused(pocket: ModelFamily) -> None:
    with pytest.raises(ConfigError, match="layer 6 is not there: pocket has 0 to 5"):
        RecordingFamily(pocket, layers=[0, 6])
    with pytest.raises(ConfigError, match="no layers"):
        RecordingFamily(pocket, layers=[])


def test_nothing_recorded_is_no_capture(pocket: ModelFamily) -> None:
    with pytest.raises(ConfigError, match="nothing was committed"):
        RecordingFamily(pocket).capture(prompt=PROMPT, seed=0)


def test_a_second_video_is_refused(pocket: ModelFamily) -> None:
    engine = VideoEngine(
        msgspec.structs.replace(CONFIG, max_streams=2), family=RecordingFamily(pocket)
    )
    engine.add_request(VideoRequest(request_id="a", prompt=PROMPT, num_frames=12))
    with pytest.raises(ConfigError, match="one video"):
        engine.add_request(VideoRequest(request_id="b", prompt=PROMPT, num_frames=12))


def test_chosen_heads_and_dtype(toy: Toy) -> None:
    request = toy.request("a", chunks=2, trace=True)
    config = toy.engine().config
    whole = record_video(toy.family(), config, request, layers=[1])
    part = record_video(toy.family(), config, request, layers=[1], heads=[1], dtype=torch.bfloat16)
    for name in ("queries", "keys", "values"):
        rows = getattr(whole.layers[1], name)
        assert rows.shape[1] == 2
        assert torch.equal(getattr(part.layers[1], name), rows[:, 1:].bfloat16())


def test_heads_that_there_are_not_are_refused(pocket: ModelFamily) -> None:
    with pytest.raises(ConfigError, match="head 2 is not there: pocket has 0 to 1"):
        RecordingFamily(pocket, heads=[2])
    with pytest.raises(ConfigError, match="no heads"):
        RecordingFamily(pocket, heads=[])


def test_queries_go_with_the_heads_that_they_read() -> None:
    """Four heads of queries to two of keys."""
    family = RecordingFamily(_Geometry(), heads=[1])  # type: ignore[arg-type]
    rows = torch.arange(8.0).reshape(2, 4, 1)
    recorder = RecordingAttention(
        _Silent(), slice(0, 2), family._rows, heads=family._heads, dtype=None
    )
    recorder.self_attention(0, rows, rows[:, :2], rows[:, 2:])
    ((queries, keys, values),) = family._rows[0]
    assert queries.flatten().tolist() == [2, 3, 6, 7]
    assert keys.flatten().tolist() == [1, 5]
    assert values.flatten().tolist() == [3, 7]


class _Geometry:
    name = "drawn"
    geometry = CacheGeometry(num_layers=1, num_kv_heads=2, head_dim=1)


class _Silent:
    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return queries

    def self_attentions(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *, with_text: bool = False
    ) -> tuple[Tensor, ...]:
        return (queries,)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return queries


def test_all_chunks_of_a_length_are_captured(pocket: ModelFamily, capture: Capture) -> None:
    """As those of a traced video, which runs to its end; the window is read later."""
    told: list[tuple[int, int]] = []
    found = record_frames(
        pocket,
        CONFIG,
        prompt=PROMPT,
        num_frames=25,
        seed=3,
        layers=LAYERS,
        on_chunk=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.chunk_tokens == (192,) * 3
    for number, layer in found.layers.items():
        for name in ("queries", "keys", "values"):
            expected = getattr(capture.layers[number], name)[: 3 * 192]
            torch.testing.assert_close(getattr(layer, name), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("window", [None, 6])
def test_denoising_passes_are_what_the_network_got(toy: Toy, window: int | None) -> None:
    """Attention from a capture is that of the engine, in every pass of every chunk."""
    listening = _Listening(toy.family(window_frames=window))
    recording = RecordingFamily(listening, denoising=True)  # type: ignore[arg-type]
    request = toy.request("a", chunks=3, trace=True)
    _run(recording, toy.engine().config, request, num_chunks=None, on_chunk=lambda done: None)
    committed = recording.capture(prompt="", seed=0)
    passes = (*recording.denoising_captures(prompt="", seed=0), committed)
    assert len(listening.outputs) == 3 * len(passes)
    for step, asking in enumerate(passes):
        forced = TeacherForced(committed, 0, (1, 2), asking=asking.layers[0])
        for chunk in (1, 2):
            ours = forced.exact(chunk).transpose(0, 1)
            theirs = listening.outputs[chunk * len(passes) + step]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_all_passes_of_a_model_are_recorded(pocket: ModelFamily) -> None:
    request = {"prompt": PROMPT, "num_frames": 24, "seed": 3}
    captures = record_passes(pocket, CONFIG, **request)  # type: ignore[arg-type]
    assert len(captures) == 1 + len(pocket.settings.timesteps)
    alone = record_frames(pocket, CONFIG, **request)  # type: ignore[arg-type]
    for number, layer in alone.layers.items():
        assert torch.equal(layer.keys, captures[0].layers[number].keys)
    for capture in captures:
        assert capture.chunk_tokens == (192, 192)
        assert sorted(capture.layers) == list(range(6))
    queries = [capture.layers[2].queries for capture in captures]
    assert not torch.equal(queries[0], queries[1]), "passes differ"
    assert all(len(rows) == 384 for rows in queries)
