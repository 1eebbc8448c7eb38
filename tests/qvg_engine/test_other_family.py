"""The engine is not built around one model.

A family made for this test guides each video with two branches that share their pages, rebuilds a
memory of varying length before every chunk in the place of the old one, and waits for its chunks
to be decoded and encoded again. It lives in this file alone.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from qvg_engine import EngineConfig, VideoEngine, VideoRequest
from qvg_engine.kernels.paged_attention import ReadTransform, RopeTransform
from qvg_engine.kernels.rope import RopeGrid, RopeTables
from qvg_engine.models.program import (
    Advance,
    CleanChunk,
    OutsideWork,
    PassInputs,
    StreamInputs,
    TextRows,
)
from qvg_engine.models.wan.family import WanFamily
from qvg_engine.models.wan.network import WanNetwork
from qvg_engine.models.wan.reference import attend, rotate
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit

SIGMAS = (1.0, 0.7, 0.4)
MEMORY_TIMESTEP = 14.0
GUIDANCE = 3.0
CHUNK_FRAMES = 2
MOST_MEMORY_FRAMES = 5


class GuidedConditions(msgspec.Struct, frozen=True, eq=False):
    """`negative` [L, text_dim]: what the video should not show."""

    negative: Tensor


def reencode(latents: Tensor) -> Tensor:
    """Stands for a decode to pixels and an encode of those: coarse, and not the identity."""
    return (latents * 8).round() / 8 * 0.9


def guide(prompted: Tensor, negative: Tensor) -> Tensor:
    return negative + GUIDANCE * (prompted - negative)


def pick_memory(history: Sequence[Tensor]) -> Tensor:
    """The first frame and the most recent ones, so that lengths differ from chunk to chunk."""
    recent = history[1:][-(MOST_MEMORY_FRAMES - 1) :]
    return torch.stack([history[0], *recent])


class GuidedProgram:
    num_branches = 2

    def __init__(
        self, inputs: StreamInputs, *, transform: ReadTransform, frame_tokens: int, page_size: int
    ) -> None:
        assert isinstance(inputs.conditions, GuidedConditions)
        self._inputs = inputs
        self._negative = TextRows(inputs.conditions.negative, inputs.text.padded_len)
        self._transform = transform
        self._frame_tokens = frame_tokens
        self._page_size = page_size
        self._history: list[Tensor] = []
        self._chunk = 0
        self._step = 0
        self._has_memory = True
        self._waits = False
        self._x = inputs.noise.start(0, self._shape)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return (CHUNK_FRAMES, *self._inputs.latent_shape)

    @property
    def peak_tokens(self) -> int:
        return MOST_MEMORY_FRAMES * self._frame_tokens

    @property
    def codebook_sets(self) -> int:
        return 1

    @property
    def needs(self) -> Needs:
        pages = -(-MOST_MEMORY_FRAMES * self._frame_tokens // self._page_size)
        # Old and new memory are held at the same time while the new one is computed.
        return Needs(pages=2 * pages, text_rows=2 * self._inputs.text.padded_len)

    @property
    def transform(self) -> ReadTransform:
        return self._transform

    @property
    def num_chunks(self) -> int:
        return self._inputs.num_frames // CHUNK_FRAMES

    @property
    def finished(self) -> bool:
        return self._chunk == self.num_chunks

    def texts(self) -> tuple[TextRows, ...]:
        return (self._inputs.text, self._negative)

    def switch_text(self, text: TextRows) -> None:
        raise AssertionError("not asked for in these tests")

    def next_gang(self) -> Gang | None:
        if self.finished or self._waits:
            return None
        if not self._has_memory:
            num_tokens = len(pick_memory(self._history)) * self._frame_tokens
            intent = CommitIntent(
                branches=(0, 1), num_tokens=num_tokens, at_token=0, free_first=self._chunk % 2 == 0
            )
            return (PassUnit(branch=0, kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent),)
        num_tokens = CHUNK_FRAMES * self._frame_tokens
        return tuple(
            PassUnit(branch=branch, kind=PassKind.DENOISE, num_tokens=num_tokens)
            for branch in (0, 1)
        )

    def pass_inputs(self) -> Sequence[PassInputs]:
        if not self._has_memory:
            memory = pick_memory(self._history)
            return (
                PassInputs(
                    latents=memory,
                    timesteps=(MEMORY_TIMESTEP,) * len(memory),
                    first_token=0,
                    transform=self._transform,
                    read_upto=0,
                ),
            )
        memory_frames = len(pick_memory(self._history)) if self._history else 0
        item = PassInputs(
            latents=self._x,
            timesteps=(1000 * SIGMAS[self._step],) * CHUNK_FRAMES,
            first_token=memory_frames * self._frame_tokens,
            transform=self._transform,
        )
        return (item, item)

    def advance(self, flows: Sequence[Tensor]) -> Advance:
        if not self._has_memory:
            self._has_memory = True
            return Advance()
        flow = guide(*flows)
        following = SIGMAS[self._step + 1] if self._step + 1 < len(SIGMAS) else 0.0
        self._x = self._x + (following - SIGMAS[self._step]) * flow
        self._step += 1
        if self._step < len(SIGMAS):
            return Advance()
        clean, self._waits = self._x, True
        chunk = CleanChunk(self._chunk, clean)
        work = OutsideWork(run=lambda: reencode(clean), receive=self._receive)
        if self._chunk + 1 == self.num_chunks:
            self._chunk += 1
            return Advance(chunks=(chunk,))
        return Advance(chunks=(chunk,), work=work)

    def _receive(self, latents: Tensor) -> None:
        self._history += latents.unbind(0)
        self._chunk += 1
        self._step = 0
        self._waits, self._has_memory = False, False
        self._x = self._inputs.noise.start(self._chunk, self._shape)


class GuidedFamily(WanFamily):
    """Wan's network under another program."""

    conditions_type = GuidedConditions

    def open(self, inputs: StreamInputs, *, page_size: int) -> Any:
        rows, columns = self.tokens_in_frame(*inputs.latent_shape[1:])
        tables = RopeTables(head_dim=self.network.config.head_dim)
        return GuidedProgram(
            inputs,
            transform=RopeTransform(RopeGrid(tables, rows, columns)),
            frame_tokens=rows * columns,
            page_size=page_size,
        )


class PlainAttention:
    """Memory, then the chunk, in dense tensors."""

    def __init__(self, network: WanNetwork, text: Tensor, text_len: int, grid: Any) -> None:
        padding = torch.zeros(text_len - len(text), text.shape[1])
        self.text = network.text_keys_values(torch.cat([text, padding]))
        self.grid = grid
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}
        self.keeps = False

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        empty = (keys[:0], values[:0])
        cached_keys, cached_values = empty if self.keeps else self.memory.get(layer, empty)
        frame = len(cached_keys) // (self.grid[0] * self.grid[1])
        if self.keeps:
            self.memory[layer] = (keys, values)
        return attend(
            rotate(queries, self.grid, frame),
            torch.cat([rotate(cached_keys, self.grid, 0), rotate(keys, self.grid, frame)]),
            torch.cat([cached_values, values]),
        )

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return attend(queries, *self.text[layer])


def plain_video(network: WanNetwork, request: VideoRequest, text_len: int) -> Tensor:
    """The same video as a loop over dense tensors."""
    assert request.noise is not None
    assert request.prompt_embeds is not None
    assert isinstance(request.conditions, GuidedConditions)
    grid = (request.noise.shape[2] // 2, request.noise.shape[3] // 2)
    texts = (request.prompt_embeds, request.conditions.negative)
    branches = [PlainAttention(network, text, text_len, grid) for text in texts]
    history: list[Tensor] = []
    done = []
    for x in request.noise.split(CHUNK_FRAMES):
        if history:
            branches[0].keeps = True
            forward(network, pick_memory(history), MEMORY_TIMESTEP, branches[0])
            branches[0].keeps = False
            branches[1].memory = branches[0].memory
        for sigma, following in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True):
            flows = [forward(network, x, 1000 * sigma, branch) for branch in branches]
            x = x + (following - sigma) * guide(*flows)
        done.append(x)
        history += reencode(x).unbind(0)
    return torch.cat(done)


def forward(network: WanNetwork, latents: Tensor, timestep: float, attention: Any) -> Tensor:
    tokens = network.patchify(latents)
    frames, _, height, width = latents.shape
    times = torch.full((frames,), timestep, dtype=torch.float64)
    flow = network(tokens, times, [len(tokens) // frames] * frames, attention)
    return network.unpatchify(flow, height, width)


def guided_engine(toy: Any, **config: Any) -> VideoEngine:
    plain = toy.family(frames_per_chunk=CHUNK_FRAMES)
    family = GuidedFamily(plain.network, plain.settings, name="guided")
    given = {"kv_format": "dense", "page_size": 4, "kv_memory": 2**21, "device": "cpu", **config}
    return VideoEngine(EngineConfig(**given), family=family)


def guided_request(name: str, chunks: int) -> VideoRequest:
    generator = torch.Generator().manual_seed(len(name) + chunks)
    return VideoRequest(
        request_id=name,
        prompt_embeds=torch.randn(3, 8, generator=generator),
        noise=torch.randn(CHUNK_FRAMES * chunks, 4, 4, 6, generator=generator),
        output="latents",
        conditions=GuidedConditions(torch.randn(2, 8, generator=generator)),
    )


@pytest.mark.parametrize("max_batch_tokens", [65_536, 24, 1])
def test_videos_equal_a_plain_loop(toy: Any, run: Any, max_batch_tokens: int) -> None:
    requests = [guided_request("a", 5), guided_request("bb", 3), guided_request("ccc", 4)]
    engine = guided_engine(toy, max_batch_tokens=max_batch_tokens)
    collected = run(engine, *requests)
    for request in requests:
        expected = plain_video(toy.network, request, text_len=6)
        latents = collected.latents(request.request_id)
        assert float((latents - expected).abs().max()) <= 1e-4
    assert engine.stats().pages_used == 0


def test_branches_share_their_pages(toy: Any) -> None:
    engine = guided_engine(toy)
    engine.add_request(guided_request("a", 4))
    most = 0
    while engine.has_unfinished_requests():
        engine.step()
        manager = engine._cache.block_manager
        if manager.num_used:
            assert manager.num_live_tokens() <= MOST_MEMORY_FRAMES * 6
            assert set(manager._pool.ref_counts[manager._pool.ref_counts > 0]) == {2}
        most = max(most, manager.num_used)
    assert most == -(-MOST_MEMORY_FRAMES * 6 // 4)


def test_replaced_memory_in_few_bits(toy: Any, run: Any) -> None:
    """Every replacement of the memory is a span; branches share pages and codebooks."""
    exact = run(guided_engine(toy), guided_request("a", 4)).latents("a")
    engine = guided_engine(toy, kv_format="q4", codebook_overhead=8.0)
    collected = run(engine, guided_request("a", 4), guided_request("bb", 3)).latents("a")
    assert torch.equal(collected[:CHUNK_FRAMES], exact[:CHUNK_FRAMES])
    error = (collected - exact).square().mean() / exact.square().mean()
    assert 0 < error < 0.1
    codebooks = engine._cache.block_manager.codebooks
    assert codebooks is not None
    assert codebooks.pool.num_reserved_rows == 0
    engine.check_integrity()


def test_other_streams_go_on_while_one_waits(toy: Any) -> None:
    engine = guided_engine(toy)
    engine.add_request(guided_request("a", 3))
    engine.step()
    engine.add_request(guided_request("b", 3))
    waited = 0
    while engine.has_unfinished_requests():
        outputs = {output.request_id: output for output in engine.step()}
        if "a" in outputs and not outputs["a"].finished:
            before = engine.stats().num_steps
            engine.step()
            # "a" waits for its chunk to be encoded again; the step ran for "b" alone.
            assert engine.stats().num_steps == before + 1
            waited += 1
    assert waited == 2


def test_conditions_of_another_family_are_refused(toy: Any) -> None:
    with pytest.raises(ValueError, match="takes GuidedConditions"):
        guided_engine(toy).add_request(
            toy.request("a", chunks=2, conditions=toy.family().conditions_type())
        )
