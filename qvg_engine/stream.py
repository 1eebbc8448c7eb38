"""One video under way: its request, its program, and what it holds while it is admitted."""

from collections.abc import Sequence

from qvg_engine.decoder_slots import DecoderSlots
from qvg_engine.kernels.device_table import send
from qvg_engine.models.program import CleanChunk, PassRecord, Program, TextRows
from qvg_engine.output import PendingOutput
from qvg_engine.request import VideoRequest
from qvg_engine.scheduler.unit import Gang
from qvg_engine.text_pool import TextEntry, TextPool


class Stream:
    """What the engine knows of a request between its add and its end."""

    def __init__(self, request: VideoRequest, program: Program) -> None:
        self.request = request
        self.program = program
        self.records: list[PassRecord] = []
        self._num_frames_sent = 0
        self._texts: tuple[TextRows, ...] = ()
        self._entries: tuple[TextEntry, ...] = ()

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def wants_video(self) -> bool:
        """Whether chunks are decoded."""
        return self.request.output == "video"

    @property
    def is_admitted(self) -> bool:
        """Whether the stream holds text entries (and a decoder slot if it wants video)."""
        return bool(self._entries)

    @property
    def text_entries(self) -> tuple[TextEntry, ...]:
        """The text of each branch; none while the stream waits."""
        return self._entries

    def admit(self, texts: TextPool, slots: DecoderSlots) -> None:
        """Take what an admitted stream holds beside its pages."""
        if self.wants_video:
            slots.acquire(self.request_id)
        self.sync_texts(texts)

    def sync_texts(self, texts: TextPool) -> None:
        """Hold the texts that the program's next passes run under."""
        wanted = self.program.texts()
        unchanged = len(wanted) == len(self._texts) and all(
            new is old for new, old in zip(wanted, self._texts, strict=True)
        )
        if unchanged:
            return
        entries = tuple(texts.acquire(text) for text in wanted)
        for entry in self._entries:
            texts.release(entry)
        self._texts, self._entries = wanted, entries

    def release(self, texts: TextPool, slots: DecoderSlots) -> None:
        """Give back everything but the pages; a stream that waits holds nothing."""
        slots.release(self.request_id)
        for entry in self._entries:
            texts.release(entry)
        self._texts, self._entries = (), ()

    def next_gang(self) -> Gang | None:
        """What the program runs next; None while it is finished or waits for work outside."""
        return self.program.next_gang()

    def begin_output(self, chunk: CleanChunk, slots: DecoderSlots) -> PendingOutput:
        """Turn a clean chunk into an output; a video is cut at the frames that were asked for."""
        index = chunk.chunk_index
        if not self.wants_video:
            return PendingOutput(self.request_id, index, chunk.latents.float())
        context = chunk.decode_after
        if context is not None:
            slots.restart(self.request_id)
        elif not self._num_frames_sent:
            context = self.request.context_latents
        if context is not None and len(context):
            # The decoder has to have seen what the video continues from.
            slots.decode(self.request_id, send(context, chunk.latents.device, chunk.latents.dtype))
        frames = slots.decode(self.request_id, chunk.latents)
        if self.request.num_frames is not None:
            frames = frames[: self.request.num_frames - self._num_frames_sent]
        self._num_frames_sent += len(frames)
        return PendingOutput(self.request_id, index, frames)


def by_request(request_ids: Sequence[str]) -> dict[str, list[int]]:
    """The indices of each request's passes, in order."""
    indices: dict[str, list[int]] = {}
    for index, request_id in enumerate(request_ids):
        indices.setdefault(request_id, []).append(index)
    return indices
