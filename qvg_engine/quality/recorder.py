"""Recording what a network gives to attention while the engine generates a video.

`RecordingFamily` stands between the engine and a model family and hands the network an `Attention`
that notes down the rows of commit passes before it passes them on. Neither of the two knows.
"""

from collections.abc import Collection, Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.block_manager.format import CacheGeometry
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.errors import ConfigError, StreamError
from qvg_engine.kernels.paged_attention import IdentityTransform, ReadTransform, RopeTransform
from qvg_engine.models.attention import Attention
from qvg_engine.models.family import ModelFamily, PromptEncoder, VideoCodec
from qvg_engine.models.program import PassInputs, Program, StreamInputs
from qvg_engine.models.rollout import RolloutSettings
from qvg_engine.quality.capture import Capture, CaptureInfo, LayerCapture
from qvg_engine.request import VideoRequest
from qvg_engine.scheduler.unit import Gang

_Rows = tuple[Tensor, Tensor, Tensor]


class RecordingFamily:
    """A model family that notes down queries, keys and values of one stream's commit passes.

    Args:
        family: what it stands for; it stays as it is.
        layers: which layers to record; all of them by default.
        branch: whose commits, where the stream has more than one branch.

    It records one stream, alone in its engine. Raises `ConfigError` for a layer that there is not.
    """

    def __init__(
        self, family: ModelFamily, *, layers: Collection[int] | None = None, branch: int = 0
    ) -> None:
        num_layers = family.geometry.num_layers
        self._family = family
        self._layers = tuple(range(num_layers)) if layers is None else tuple(sorted(set(layers)))
        for layer in self._layers:
            if not 0 <= layer < num_layers:
                raise ConfigError(
                    f"layer {layer} is not there: {family.name} has 0 to {num_layers - 1}"
                )
        if not self._layers:
            raise ConfigError("no layers to record: name at least one")
        self._branch = branch
        self._program: Program | None = None
        self._rows: dict[int, list[_Rows]] = {layer: [] for layer in self._layers}
        self._chunk_tokens: list[int] = []
        self._transform: ReadTransform = IdentityTransform()

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
        self, passes: Sequence[PassInputs], attention: Attention, *, batch_invariant: bool
    ) -> list[Tensor]:
        assert self._program is not None, "no program was opened"
        gang = self._program.next_gang()
        assert gang is not None
        assert len(gang) == len(passes), (len(gang), len(passes))
        rows = self._committed_rows(gang, passes)
        if rows is not None:
            attention = _Recorder(attention, rows, self._rows)
        return self._family.forward(passes, attention, batch_invariant=batch_invariant)

    def capture(self, *, prompt: str, seed: int) -> Capture:
        """What was recorded until now; `prompt` and `seed` are only noted down.

        Raises `ConfigError` if nothing was committed, or if keys are read by a rule that a capture
        cannot name.
        """
        if not self._chunk_tokens:
            raise ConfigError("nothing was committed yet: generate more than one chunk")
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
        for layer, recorded in self._rows.items():
            queries, keys, values = (torch.cat(part) for part in zip(*recorded, strict=True))
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
                self._transform = inputs.transform
                return slice(stop - stored, stop)
            first_row = stop
        return None


class _Recorder:
    """Copies some rows of some layers on their way to attention."""

    def __init__(self, attention: Attention, rows: slice, into: dict[int, list[_Rows]]) -> None:
        self._attention = attention
        self._rows = rows
        self._into = into

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if layer in self._into:
            part = tuple(x[self._rows].detach().cpu().clone() for x in (queries, keys, values))
            self._into[layer].append(part)  # type: ignore[arg-type]
        return self._attention.self_attention(layer, queries, keys, values)

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return self._attention.cross_attention(layer, queries)


def record_video(
    family: ModelFamily,
    config: EngineConfig,
    request: VideoRequest,
    *,
    layers: Collection[int] | None = None,
) -> Capture:
    """Generate one video in an engine of its own and capture all its chunks.

    The request should be a traced one if its last chunk, which nothing reads, is to be captured,
    too. Raises what the engine raises, and `StreamError` if the video fails.
    """
    recording = RecordingFamily(family, layers=layers)
    engine = VideoEngine(config, family=recording)
    engine.add_request(request)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finish_reason == "error":
                raise StreamError(output.error)
    return recording.capture(prompt=request.prompt or "", seed=request.seed)


def _grid(transform: ReadTransform) -> tuple[int, int] | None:
    if isinstance(transform, RopeTransform):
        return transform.grid.height, transform.grid.width
    if isinstance(transform, IdentityTransform):
        return None
    raise ConfigError(
        f"keys are read through {type(transform).__name__}: a capture knows RoPE, or nothing at all"
    )
