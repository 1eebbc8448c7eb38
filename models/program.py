"""Pass programs: which passes a stream needs, one gang after the other.

A model family turns a request into a program. The engine asks it for the next gang, gives the
passes' inputs to the network, and hands the flows back; what the program emits meanwhile are
clean chunks, pages that no later pass will read, and work outside the network. The scheduler
sees the gangs alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from torch import Tensor

from qvg_engine.kernels.paged_attention import ReadTransform
from qvg_engine.models.noise import NoiseSource
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import Gang


class TextRows(msgspec.Struct, frozen=True):
    """The text of one branch: `rows` [L, text_dim], attended to as `padded_len` >= L rows.

    The rows beyond L are zero rows; of many, the engine keeps one with a log-count weight.
    """

    rows: Tensor
    padded_len: int


class StreamInputs(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a model family sees it: checked, encoded, with its noise.

    `num_frames` counts the latent frames to generate, `latent_shape` is (C, h, w),
    `context_latents` [F, C, h, w] are committed before the first chunk. `record_passes` asks for
    the commit of the last chunk, too, which nobody will read.
    """

    text: TextRows
    num_frames: int
    latent_shape: tuple[int, int, int]
    noise: NoiseSource
    context_latents: Tensor | None = None
    conditions: msgspec.Struct | None = None
    record_passes: bool = False


class PassInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass feeds the network.

    `latents` is [F, C, h, w], `timesteps` F numbers in 0..1000, `first_token` the number, within
    the branch, of the pass's first token (its position follows from it). Tokens of the branch
    from number `read_upto` on are not read; None reads all. `transform` is applied to queries,
    keys, values and output. Without `reads_text` a pass has no cross-attention. With
    `packed_positions` a token's position is its place among the tokens that the pass sees, those of
    the cache first, instead of its number.
    """

    latents: Tensor
    timesteps: tuple[float, ...]
    first_token: int
    transform: ReadTransform
    read_upto: int | None = None
    reads_text: bool = True
    packed_positions: bool = False


class PassRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass computed: `x0` and `flow` [F, C, h, w]; `step` is None for a commit.

    `chunk_index` counts generated chunks; context that came with the request has negative
    indices, the last piece -1. With guidance, `guided_flow` is what the branches' flows were
    combined to, and `cfg_zero_scale` the factor of the negative one (CFG-Zero*); all branches'
    records have them.
    """

    chunk_index: int
    branch: int
    step: int | None
    timestep: float
    x0: Tensor
    flow: Tensor
    guided_flow: Tensor | None = None
    cfg_zero_scale: float | None = None


class CleanChunk(msgspec.Struct, frozen=True):
    """A chunk that is done: `latents` [F, C, h, w].

    With `decode_after` [F', C, h, w] the decoder starts anew, with these latents first, whose
    frames are not given out.
    """

    chunk_index: int
    latents: Tensor
    decode_after: Tensor | None = None


class Eviction(msgspec.Struct, frozen=True):
    """Tokens that no later pass reads: sink_tokens <= number < window_start of a branch."""

    branch: int
    sink_tokens: int
    window_start: int


class OutsideWork(msgspec.Struct, frozen=True):
    """Work outside the network, e.g. a decode and re-encode; `receive` gets what `run` returns.

    It is done at the end of the next step, while other streams go on; until then the program
    offers no gang.
    """

    run: Callable[[], Any]
    receive: Callable[[Any], None]


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """What a program emits after a step."""

    chunks: tuple[CleanChunk, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    records: tuple[PassRecord, ...] = ()
    work: OutsideWork | None = None


class Program(Protocol):
    """One stream's passes. Nothing changes between `next_gang` and `advance`."""

    @property
    def num_branches(self) -> int: ...

    @property
    def peak_tokens(self) -> int:
        """Tokens that its branches keep at the peak; one that they share counts once."""
        ...

    @property
    def codebook_sets(self) -> int:
        """Branches that commit tokens of their own, shared or not."""
        ...

    @property
    def needs(self) -> Needs:
        """Pages and text rows at the peak; the engine adds the decoder slot."""
        ...

    @property
    def transform(self) -> ReadTransform:
        """The transform under which the next pass would read what is cached."""
        ...

    @property
    def num_chunks(self) -> int:
        """Chunks that will be emitted in all."""
        ...

    @property
    def finished(self) -> bool: ...

    def texts(self) -> tuple[TextRows, ...]:
        """The text of each branch."""
        ...

    def next_gang(self) -> Gang | None:
        """The next passes; None while finished or waiting for work outside the network."""
        ...

    def pass_inputs(self) -> Sequence[PassInputs]:
        """The inputs of the passes of `next_gang`, in its order."""
        ...

    def advance(self, flows: Sequence[Tensor]) -> Advance:
        """Take the flows [F, C, h, w] of the passes of `next_gang`."""
        ...

    def switch_text(self, text: TextRows) -> None:
        """Go on under another text. Raises RequestError where the family cannot."""
        ...
