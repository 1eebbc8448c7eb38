"""How much a video suffers from each layer's K and V: by making it with one of them in few bits.

The error of a layer's attention does not say that: what a late layer loses in K costs several times
as much of the latents as an early layer's V that loses as much.
"""

from collections.abc import Callable

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.allocation import Allocation
from qvg_engine.block_manager.format import LayerFormats, PageFormat, get_format
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.errors import StreamError
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.chunk_frames import with_room
from qvg_engine.quality.kv_prices import KvPrices
from qvg_engine.request import VideoRequest

NUM_CHUNKS = 2
"""Chunks whose latents are compared: the first that read the cache, the second and the third."""

_LEAST_PART = 0.1
"""Least effect of a part, of what the finest formats do."""


class Probes:
    """The first chunks of one video, made with formats by layer, against those of `bf16` pages.

    Args:
        family, config: what makes it; formats, memory and number of streams are set here.
        prompt, seed: of the video.
        num_frames: pixel frames of the videos that this is for, which say how large codebooks are.
    """

    def __init__(
        self, family: ModelFamily, config: EngineConfig, *, prompt: str, seed: int, num_frames: int
    ) -> None:
        self._family = family
        self._config = msgspec.structs.replace(config, value_format=None, batch_invariant=True)
        self._request = VideoRequest(
            request_id="probe", prompt=prompt, seed=seed, num_frames=num_frames, output="latents"
        )
        self._exact = self._latents(get_format("bf16"))

    def error(self, allocation: Allocation) -> float:
        """The squared relative error of the latents, the mean over the chunks."""
        made = self._latents(allocation)
        return float(
            np.mean(
                [
                    (one - exact).square().sum() / exact.square().sum()
                    for one, exact in zip(made, self._exact, strict=True)
                ]
            )
        )

    def _latents(self, kv_format: PageFormat | Allocation) -> list[Tensor]:
        """The chunks after the first; those that there are of a short video."""
        assert self._request.num_frames is not None
        config = msgspec.structs.replace(self._config, kv_format=kv_format)
        config = with_room(config, self._family, num_streams=1, num_frames=self._request.num_frames)
        engine = VideoEngine(config, family=self._family)
        engine.add_request(self._request)
        chunks: list[Tensor] = []
        while engine.has_unfinished_requests() and len(chunks) <= NUM_CHUNKS:
            for output in engine.step():
                if output.finish_reason == "error":
                    raise StreamError(output.error)
                if output.latents is not None:
                    chunks.append(output.latents.to(torch.float64))
        return chunks[1:]


def measure_effects(
    probes: Probes,
    prices: KvPrices,
    *,
    overhead: float,
    on_probe: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """The squared error of the latents that each part adds in the leanest format.

    float64 [layers, K or V]; all the others are in the finest format, whose own error is taken off.
    `on_probe` is told how many videos of how many were made.
    """
    lean = prices.candidates[int(np.argmin(prices.row_bytes))]
    fine = prices.candidates[int(np.argmax(prices.row_bytes))]
    num_layers = prices.num_layers
    done, total = 0, 1 + 2 * num_layers
    on_probe(done, total)

    def error(layer: int | None, *, is_key: bool) -> float:
        nonlocal done
        layers = [LayerFormats(keys=fine, values=fine)] * num_layers
        if layer is not None:
            pair = (lean, fine) if is_key else (fine, lean)
            layers[layer] = LayerFormats(keys=pair[0], values=pair[1])
        found = probes.error(prices.allocation(tuple(layers), overhead))
        done += 1
        on_probe(done, total)
        return found

    floor = error(None, is_key=True)
    parts = [
        [error(layer, is_key=is_key) for is_key in (True, False)] for layer in range(num_layers)
    ]
    return np.maximum(np.array(parts) - floor, _LEAST_PART * floor)


def weighted(
    errors: NDArray[np.float64], effects: NDArray[np.float64], prices: KvPrices, *, overhead: float
) -> NDArray[np.float64]:
    """Squared errors of the latents that candidates are taken to add, [as `PartErrors`].

    Each part's errors of attention, times what its leanest format does to the latents over what it
    does to attention.
    """
    lean = int(np.argmin(prices.row_bytes))
    probed = errors[prices.overheads.index(overhead), :, :, lean]
    return errors * (effects / probed)[None, :, :, None]
