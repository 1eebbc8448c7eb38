"""Whole videos from prompts: the loop above `VideoEngine.step`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from qvg_engine.errors import RequestError, StreamError
from qvg_engine.output import VideoOutput
from qvg_engine.request import VideoRequest

if TYPE_CHECKING:
    from qvg_engine.engine import VideoEngine


class GeneratedVideo(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One finished video: `frames` are uint8 [T, H, W, 3]."""

    prompt: str
    seed: int
    frames: NDArray[np.uint8]


def generate(
    engine: "VideoEngine",
    prompts: Sequence[str],
    *,
    num_frames: int,
    seed: int = 0,
    on_output: Callable[[VideoOutput], None] | None = None,
) -> list[GeneratedVideo]:
    """One video a prompt, all together; see `VideoEngine.generate`."""
    if engine.has_unfinished_requests():
        raise RequestError("the engine has unfinished requests: step it to their end first")
    requests = [
        VideoRequest(
            request_id=f"generate-{index}", prompt=prompt, num_frames=num_frames, seed=seed + index
        )
        for index, prompt in enumerate(prompts)
    ]
    chunks: dict[str, list[NDArray[np.uint8]]] = {item.request_id: [] for item in requests}
    try:
        for request in requests:
            engine.add_request(request)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finish_reason == "error":
                    raise StreamError(output.error)
                if output.frames is not None:
                    chunks[output.request_id].append(output.frames)
                if on_output is not None:
                    on_output(output)
    except BaseException:
        engine.drop_unfinished()
        raise
    return [
        GeneratedVideo(
            prompt=prompt,
            seed=request.seed,
            frames=np.concatenate(chunks[request.request_id]),
        )
        for prompt, request in zip(prompts, requests, strict=True)
    ]
