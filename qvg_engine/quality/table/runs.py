"""Videos of a contender through the engine, or through one whose pages are simulated."""

from collections.abc import Sequence

import msgspec

from qvg_engine.block_manager.format import FORMATS, PageFormat
from qvg_engine.config import EngineConfig
from qvg_engine.engine import VideoEngine
from qvg_engine.models.family import ModelFamily
from qvg_engine.quality.chunk_frames import Video, first_chunks, with_room
from qvg_engine.quality.contender import Contender
from qvg_engine.quality.contenders.format import FormatContender
from qvg_engine.quality.simulated_pages import needs_codebook, simulated_pages
from qvg_engine.request import VideoRequest


class ContenderRuns:
    """Makes videos with one contender after the other, alike in all else.

    Args:
        family: with prompt encoder and VAE.
        config: of the engine; format, memory and number of streams are set here.
        num_frames: the length that streams ask for, in pixel frames.
    """

    def __init__(self, family: ModelFamily, config: EngineConfig, *, num_frames: int) -> None:
        self._family = family
        self._config = msgspec.structs.replace(config, batch_invariant=True)
        self._num_frames = num_frames

    def how(self, contender: Contender) -> str:
        """ "engine", "simulated", or "" for what needs codebooks that the engine does not have."""
        if isinstance(contender, FormatContender):
            return "engine"
        geometry = self._family.geometry
        shared = needs_codebook(contender, heads=geometry.num_kv_heads, head_dim=geometry.head_dim)
        return "" if shared else "simulated"

    def contender(
        self,
        contender: Contender,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        first: int,
        count: int,
    ) -> list[Video]:
        """Chunks of a video a prompt, see `first_chunks`; `how` is not ""."""
        if isinstance(contender, FormatContender):
            return self.page_format(contender.page_format, prompts, seeds, first=first, count=count)
        with simulated_pages(contender):
            return self.page_format(FORMATS["dense"], prompts, seeds, first=first, count=count)

    def page_format(
        self,
        page_format: PageFormat,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        first: int,
        count: int,
        batch_invariant: bool = True,
    ) -> list[Video]:
        """The same of a page format."""
        config = msgspec.structs.replace(
            self._config,
            kv_format=page_format,
            value_format=None,
            batch_invariant=batch_invariant,
        )
        config = with_room(
            config, self._family, num_streams=len(prompts), num_frames=self._num_frames
        )
        requests = [
            VideoRequest(
                request_id=str(index), prompt=prompt, num_frames=self._num_frames, seed=seed
            )
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        engine = VideoEngine(config, family=self._family)
        return first_chunks(engine, requests, first=first, count=count)
