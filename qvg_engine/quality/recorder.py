"""Recording what a network gives to attention while the engine generates a video.

`RecordingFamily` stands between the engine and a model family and hands the network an `Attention`
that notes down the rows of commit passes before it passes them on. Neither of the two knows.
"""

from collections.abc import Callable, Collection, Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.admission import chunked_latent_frames
from qvg_engine.block_manager.format import CacheGeometry
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.errors import ConfigError, StreamError
from qvg_engine.kernels.paged_attention import IdentityTransform, ReadTransform, RopeTransform
from qvg_engine.models.attention import EngineAttention
from qvg_engine.models.family import ModelFamily, PromptEncoder, VideoCodec
from qvg_engine.models.program import PassInputs, Program, StreamInputs
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.quality.capture import Capture, CaptureInfo, LayerCapture
from qvg_engine.request import VideoRequest
from qvg_engine.scheduler.unit import Gang, PassKind

_Rows = tuple[Tensor, Tensor, Tensor]


class RecordingFamily:
    """A model family that notes down queries, keys and values of one stream's commit passes.

    Args:
        family: what it stands for; it stays as it is.
        layers: which layers to record; all of them by default.
        heads: which KV heads, with the queries that read them; all of them by default.
        dtype: how to keep the rows; as they were computed by default.
        branch: whose commits, where the stream has more than one branch.
        denoising: whether to record denoising passes, too, see `denoising_captures`.

    It records one stream, alone in its engine, on the host. Raises `ConfigError` for a layer or a
    head that there is not.
    """

    def __init__(
        self,
        family: ModelFamily,
        *,
        layers: Collection[int] | None = None,
        heads: Collection[int] | None = None,
        dtype: torch.dtype | None = None,
        branch: int = 0,
        denoising: bool = False,
    ) -> None:
        self._family = family
        geometry = family.geometry
        self._layers = _chosen(layers, geometry.num_layers, name="layer", model=family.name)
        self._heads = _chosen(heads, geometry.num_kv_heads, name="head", model=family.name)
        self._dtype = dtype
        self._branch = branch
        self._program: Program | None = None
        self._rows: dict[int, list[_Rows]] = {layer: [] for layer in self._layers}
        self._chunk_tokens: list[int] = []
        self._keeps_denoising = denoising
        self._denoising: list[dict[int, list[_Rows]]] = []
        self._step = 0
        self._transform: ReadTransform = IdentityTransform()

    @property
    def num_chunks(self) -> int:
        """Chunks whose commit has begun."""
        return len(self._chunk_tokens)

    @property
    def name(self) -> str:
        return self._family.name

    @property
    def geometry(self) -> CacheGeometry:
        return self._family.geometry

    @property
    def settings(self) -> RolloutSettings:
        return self._family.settings

    @property
    def text_dim(self) -> int:
        return self._family.text_dim

    @property
    def tokens_per_frame(self) -> int:
        return self._family.tokens_per_frame

    @property
    def codec(self) -> VideoCodec | None:
        return self._family.codec

    @property
    def prompt_encoder(self) -> PromptEncoder | None:
        return self._family.prompt_encoder

    @property
    def conditions_type(self) -> type[msgspec.Struct]:
        return self._family.conditions_type

    def text_keys_values(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        return self._family.text_keys_values(rows)

    def published_keys(self, keys: Tensor) -> Tensor:
        return self._family.published_keys(keys)

    def open(self, inputs: StreamInputs, *, page_size: int) -> Program:
        """Start the one program that is recorded; ConfigError for a second one."""
        if self._program is not None:
            raise ConfigError("a recording is of one video: make another one for the next")
        self._program = self._family.open(inputs, page_size=page_size)
        return self._program

    def forward(
        self, passes: Sequence[PassInputs], attention: EngineAttention, *, batch_invariant: bool
    ) -> list[Tensor]:
        assert self._program is not None, "no program was opened"
        gang = self._program.next_gang()
        assert gang is not None
        assert len(gang) == len(passes), (len(gang), len(passes))
        rows, into = self._committed_rows(gang, passes), self._rows
        if rows is None and self._keeps_denoising:
            rows, into = self._denoised_rows(gang)
        if rows is not None:
            attention = _Recorder(attention, rows, into, heads=self._heads, dtype=self._dtype)
        return self._family.forward(passes, attention, batch_invariant=batch_invariant)

    def capture(self, *, prompt: str, seed: int) -> Capture:
        """What was recorded until now; `prompt` and `seed` are only noted down.

        Raises `ConfigError` if nothing was committed, or if keys are read by a rule that a capture
        cannot name.
        """
        if not self._chunk_tokens:
            raise ConfigError("nothing was committed yet: generate more than one chunk")
        return self._capture(self._rows, prompt=prompt, seed=seed)

    def denoising_captures(self, *, prompt: str, seed: int) -> tuple[Capture, ...]:
        """What denoising passes of the same chunks gave to attention: a capture for each pass.

        Their keys and values are those of the pass, of which only a chunk's own are ever read.
        Raises as `capture` does.
        """
        num_tokens = self.capture(prompt=prompt, seed=seed).num_tokens
        captures = [self._capture(rows, prompt=prompt, seed=seed) for rows in self._denoising]
        for capture in captures:
            layer = next(iter(capture.layers.values()))
            assert len(layer.queries) == num_tokens, "a chunk was begun and not committed"
        return tuple(captures)

    def _capture(self, rows: dict[int, list[_Rows]], *, prompt: str, seed: int) -> Capture:
        settings, grid = self.settings, _grid(self._transform)
        per_frame = self.tokens_per_frame if grid is None else grid[0] * grid[1]
        window = settings.window_frames
        info = CaptureInfo(
            model=self.name,
            prompt=prompt,
            seed=seed,
            window_tokens=None if window is None else window * per_frame,
            sink_tokens=settings.sink_frames * per_frame,
            grid=grid,
        )
        layers = {}
        for layer, recorded in rows.items():
            queries, keys, values = (torch.cat(part) for part in zip(*recorded, strict=True))
            # No more than one layer is held twice.
            rows[layer] = [(queries, keys, values)]
            layers[layer] = LayerCapture(queries=queries, keys=keys, values=values)
        return Capture(info=info, chunk_tokens=tuple(self._chunk_tokens), layers=layers)

    def _committed_rows(self, gang: Gang, passes: Sequence[PassInputs]) -> slice | None:
        """The rows of the pass that commits the branch's tokens, and a note of their number."""
        first_row = 0
        for unit, inputs in zip(gang, passes, strict=True):
            stop = first_row + unit.num_tokens
            intent = unit.commit
            if intent is not None and self._branch in intent.branches:
                stored = intent.num_tokens
                first_token = inputs.first_token + unit.num_tokens - stored
                if intent.at_token is not None or first_token != sum(self._chunk_tokens):
                    raise ConfigError(
                        "the video replaces tokens that it had committed, or leaves some out: "
                        "that cannot be captured"
                    )
                self._chunk_tokens.append(stored)
                self._step = 0
                self._transform = inputs.transform
                return slice(stop - stored, stop)
            first_row = stop
        return None

    def _denoised_rows(self, gang: Gang) -> tuple[slice | None, dict[int, list[_Rows]]]:
        """The rows of the branch's denoising pass, and what they are added to."""
        first_row = 0
        for unit in gang:
            stop = first_row + unit.num_tokens
            if unit.branch == self._branch and unit.kind is PassKind.DENOISE:
                if self._step == len(self._denoising):
                    self._denoising.append({layer: [] for layer in self._layers})
                self._step += 1
                return slice(first_row, stop), self._denoising[self._step - 1]
            first_row = stop
        return None, {}


class _Recorder:
    """Copies some rows of some layers and heads on their way to attention."""

    def __init__(
        self,
        attention: EngineAttention,
        rows: slice,
        into: dict[int, list[_Rows]],
        *,
        heads: tuple[int, ...],
        dtype: torch.dtype | None,
    ) -> None:
        self._attention = attention
        self._rows = rows
        self._into = into
        self._heads = heads
        self._dtype = dtype

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self._note(layer, queries, keys, values)
        return self._attention.self_attention(layer, queries, keys, values)

    def self_attentions(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        with_text: bool = False,
    ) -> tuple[Tensor, ...]:
        self._note(layer, queries, keys, values)
        return self._attention.self_attentions(layer, queries, keys, values, with_text=with_text)

    def _note(self, layer: int, *rows: Tensor) -> None:
        if layer in self._into:
            num_heads = rows[1].shape[1]
            part = tuple(self._copy(x, num_heads) for x in rows)
            self._into[layer].append(part)  # type: ignore[arg-type]

    def _copy(self, x: Tensor, num_heads: int) -> Tensor:
        """The recorded rows of [tokens, heads, head_dim], where `num_heads` divides the heads."""
        rows = x[self._rows].detach().unflatten(1, (num_heads, -1))
        chosen: Tensor = rows[:, list(self._heads)].flatten(1, 2)
        return chosen.to(device="cpu", dtype=self._dtype or x.dtype)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return self._attention.cross_attention(layer, queries)


def record_video(
    family: ModelFamily,
    config: EngineConfig,
    request: VideoRequest,
    *,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    dtype: torch.dtype | None = None,
    num_chunks: int | None = None,
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Capture:
    """Generate one video in an engine of its own and capture its chunks.

    Args:
        family, config, request: what to generate. The last chunk, which nothing reads, is only
            committed and captured if the request is a traced one.
        layers, heads, dtype: see `RecordingFamily`.
        num_chunks: stop when so many chunks are captured; the request must be for more.
        on_chunk: told how many chunks are captured, after each.

    Raises what the engine raises, and `StreamError` if the video fails.
    """
    recording = RecordingFamily(family, layers=layers, heads=heads, dtype=dtype)
    _run(recording, config, request, num_chunks=num_chunks, on_chunk=on_chunk)
    return recording.capture(prompt=request.prompt or "", seed=request.seed)


def _run(
    recording: RecordingFamily,
    config: EngineConfig,
    request: VideoRequest,
    *,
    num_chunks: int | None,
    on_chunk: Callable[[int], None],
) -> None:
    """Generate until so many chunks are recorded; see `record_video`."""
    engine = VideoEngine(config, family=recording)
    engine.add_request(request)
    done = 0
    while engine.has_unfinished_requests() and (num_chunks is None or done < num_chunks):
        for output in engine.step():
            if output.finish_reason == "error":
                raise StreamError(output.error)
        if recording.num_chunks > done:
            done = recording.num_chunks
            on_chunk(done)
    if num_chunks is not None and done != num_chunks:
        raise ConfigError(
            f"the video committed {done} of {num_chunks} chunks: model {recording.name!r} does not "
            "commit what it generates chunk by chunk, and cannot be captured from a prompt"
        )


def record_frames(
    family: ModelFamily,
    config: EngineConfig,
    *,
    prompt: str,
    num_frames: int,
    seed: int,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    dtype: torch.dtype | None = None,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> Capture:
    """Capture all chunks of a video of `num_frames` pixel frames, the last one included.

    The video is begun with one chunk more, since a chunk is committed before the next one's first
    pass, and is left once all that were asked for are committed. `on_chunk` is told how many
    chunks are captured, and of how many. Otherwise as `record_video`.
    """
    request, total = _longer_request(family, prompt=prompt, num_frames=num_frames, seed=seed)
    return record_video(
        family,
        config,
        request,
        layers=layers,
        heads=heads,
        dtype=dtype,
        num_chunks=total,
        on_chunk=lambda done: on_chunk(done, total),
    )


def record_passes(
    family: ModelFamily,
    config: EngineConfig,
    *,
    prompt: str,
    num_frames: int,
    seed: int,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Capture, ...]:
    """As `record_frames`, all layers; behind the commit pass's capture those of denoising passes.

    See `RecordingFamily.denoising_captures`.
    """
    request, total = _longer_request(family, prompt=prompt, num_frames=num_frames, seed=seed)
    recording = RecordingFamily(family, denoising=True)
    _run(
        recording,
        config,
        request,
        num_chunks=total,
        on_chunk=lambda done: on_chunk(done, total),
    )
    committed = recording.capture(prompt=prompt, seed=seed)
    return (committed, *recording.denoising_captures(prompt=prompt, seed=seed))


def _longer_request(
    family: ModelFamily, *, prompt: str, num_frames: int, seed: int
) -> tuple[VideoRequest, int]:
    """A video with a chunk more than those of `num_frames`, and the number of those."""
    codec, per_chunk = family.codec, family.settings.frames_per_chunk
    total = -(-chunked_latent_frames(family, num_frames, request_id="capture") // per_chunk)
    assert codec is not None, "checked with the number of frames"
    longer = num_frames
    while codec.latent_frames(longer) <= total * per_chunk:
        longer += 1
    request = VideoRequest(
        request_id="capture", prompt=prompt, num_frames=longer, seed=seed, output="latents"
    )
    return request, total


def _chosen(
    numbers: Collection[int] | None, count: int, *, name: str, model: str
) -> tuple[int, ...]:
    """The numbers in order, or all there are; ConfigError for one that there is not."""
    chosen = tuple(range(count)) if numbers is None else tuple(sorted(set(numbers)))
    for number in chosen:
        if not 0 <= number < count:
            raise ConfigError(f"{name} {number} is not there: {model} has 0 to {count - 1}")
    if not chosen:
        raise ConfigError(f"no {name}s to record: name at least one")
    return chosen


def _grid(transform: ReadTransform) -> tuple[int, int] | None:
    if isinstance(transform, RopeTransform):
        return transform.grid.height, transform.grid.width
    if isinstance(transform, IdentityTransform):
        return None
    raise ConfigError(
        f"keys are read through {type(transform).__name__}: a capture knows RoPE, or nothing at all"
    )
