"""What the engine gives back: chunks of video or latents, and what a traced request computed."""

from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.readback import Readback
from qvg_engine.models.program import PassRecord

FinishReason = Literal["length", "abort", "error"]


class LayerCache(msgspec.Struct, frozen=True, eq=False):
    """One layer's cache of a branch at the end of a traced request.

    All are [tokens, heads, head_dim] in the original channel order of the weights: `keys` after
    QK-norm and before RoPE (as they are stored), `rotated_keys` after RoPE at the tokens'
    positions (as Self-Forcing stores them), `values`; `text_keys` and `text_values` have one row
    for each of the `text_len` text rows. `transformed` are keys and values as each read transform
    turns them, where passes read under several.
    """

    keys: Tensor
    rotated_keys: Tensor
    values: Tensor
    text_keys: Tensor
    text_values: Tensor
    transformed: tuple[tuple[Tensor, Tensor], ...] = ()


class Trace(msgspec.Struct, frozen=True, eq=False):
    """Every pass of a request in order, then the caches by branch and layer.

    `token_numbers` says, per branch, which tokens of the video the rows of the caches are (those
    that were evicted are missing).
    """

    passes: tuple[PassRecord, ...]
    caches: tuple[tuple[LayerCache, ...], ...]
    token_numbers: tuple[NDArray[np.int64], ...]


class VideoOutput(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One chunk of a request, or its end.

    `frames` are uint8 [T, H, W, 3] or None; `latents` fp32 [F, C, h, w] or None. The last output
    of a request has `finished`, with the reason, the `error` as one line and the `trace` if it
    was asked for; after an abort or an error, and of a traced request, it carries no chunk.
    """

    request_id: str
    chunk_index: int | None = None
    frames: NDArray[np.uint8] | None = None
    latents: Tensor | None = None
    finished: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None
    trace: Trace | None = None


class PendingOutput:
    """A chunk that may still be computed: frames uint8 [T, H, W, 3], or latents [F, C, h, w]."""

    def __init__(self, request_id: str, chunk_index: int, content: Tensor) -> None:
        self._request_id = request_id
        self._chunk_index = chunk_index
        self._content = Readback([content])

    def finish(self) -> VideoOutput:
        """The output; waits for the device."""
        (content,) = self._content.wait()
        is_video = content.dtype == torch.uint8
        return VideoOutput(
            request_id=self._request_id,
            chunk_index=self._chunk_index,
            frames=content.numpy() if is_video else None,
            latents=None if is_video else content,
        )
