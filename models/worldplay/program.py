"""The pass program of WorldPlay: remember, denoise, next chunk.

Before every chunk but the first the frames that it will remember are run again, clean, in one
commit pass per branch whose keys and values replace those of the branch's pages. Memory and chunk
have positions 0, 1, ... in order of time, whatever their numbers in the video.
"""

from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from qvg_engine.block_manager.page_count import pages_for
from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.paged_attention import ReadTransform, RopeTransform, TransformSet
from qvg_engine.kernels.rope import RopeGrid
from qvg_engine.models.program import Advance, CleanChunk, StreamInputs, TextRows
from qvg_engine.models.worldplay.cameras import CameraPath
from qvg_engine.models.worldplay.memory import select_memory
from qvg_engine.models.worldplay.passes import WorldPlayPass, WorldPlayRecord
from qvg_engine.models.worldplay.projective import ProjectiveTransform, projections
from qvg_engine.models.worldplay.sampler import EulerSampler
from qvg_engine.models.worldplay.settings import WorldPlaySettings
from qvg_engine.scheduler.needs import Needs
from qvg_engine.scheduler.unit import CommitIntent, Gang, PassKind, PassUnit


class WorldPlayVideo(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A request as the program runs it.

    `context` [F, C, h, w] are clean latents before the first chunk. `cameras` and `labels` are
    those of all latent frames, context included. `texts` are the rows of each branch, the prompt's
    first, and `text_rows` the most that all of them will have; `retext` gives the prompt's rows
    after a switch. `condition` [Cc, h, w] are channels that go to the network with the first latent
    frame, and as zeros with the others; `image` [C, h, w] is the first latent frame, where it is
    kept as it is.
    """

    inputs: StreamInputs
    context: Tensor | None
    cameras: CameraPath
    labels: tuple[int, ...]
    texts: tuple[TextRows, ...]
    text_rows: int
    retext: Callable[[TextRows], TextRows]
    points: Tensor
    guidance_scale: float
    condition: Tensor | None = None
    image: Tensor | None = None


class WorldPlayProgram:
    """One video; with guidance two branches, each with a memory of its own."""

    def __init__(
        self,
        video: WorldPlayVideo,
        *,
        settings: WorldPlaySettings,
        sampler: EulerSampler,
        grid: RopeGrid,
        page_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._video = video
        self._settings = settings
        self._sampler = sampler
        self._grid = grid
        self._tokens_per_frame = grid.height * grid.width
        self._device = device
        self._dtype = dtype
        in_bf16 = dtype == torch.bfloat16
        rounds = (settings.round_latents, settings.round_cameras)
        self._round_latents, round_cameras = (in_bf16 if r is None else r for r in rounds)
        cameras = (video.cameras.world_to_camera, video.cameras.intrinsics)
        # They stay on the host, which sends those of a chunk's slots.
        self._projections = projections(*(_rounded(x.float(), round_cameras) for x in cameras))
        self._texts = video.texts
        self._next_text: TextRows | None = None
        context = video.context
        self._history = [] if context is None else list(self._state(context).unbind(0))
        self._num_context = len(self._history)
        self._chunk = 0
        self._step = 0
        self._x: Tensor | None = None
        self._has_memory = False
        self._begin_chunk()
        most = self._most_remembered() * self._tokens_per_frame
        self._peak_tokens = most * self.num_branches
        self._needs = Needs(
            pages=pages_for(most, page_size) * self.num_branches,
            text_rows=video.text_rows,
        )

    @property
    def num_branches(self) -> int:
        return len(self._texts)

    @property
    def peak_tokens(self) -> int:
        return self._peak_tokens

    @property
    def codebook_sets(self) -> int:
        return self.num_branches

    @property
    def needs(self) -> Needs:
        return self._needs

    @property
    def transform(self) -> ReadTransform:
        return self._transform

    @property
    def num_chunks(self) -> int:
        return self._video.inputs.num_frames // self._settings.frames_per_chunk

    @property
    def finished(self) -> bool:
        return self._chunk == self.num_chunks

    def texts(self) -> tuple[TextRows, ...]:
        return self._texts

    def switch_text(self, text: TextRows) -> None:
        self._next_text = self._video.retext(text)
        if self._step == 0 and not (self._memory and self._has_memory):
            self._take_text()

    def next_gang(self) -> Gang | None:
        if self.finished:
            return None
        return tuple(self._unit(branch) for branch in range(self.num_branches))

    def pass_inputs(self) -> Sequence[WorldPlayPass]:
        frames, latents = self._frames(), self._latents()
        if self._video.condition is not None:
            channels = latents.new_zeros(len(frames), *self._video.condition.shape)
            if frames[0] == 0:
                channels[0] = self._video.condition
            latents = torch.cat([latents, channels], dim=1)
        slot = len(self._memory) if self._has_memory else 0
        item = WorldPlayPass(
            latents=latents.to(self._dtype),
            timesteps=self._timesteps(),
            labels=tuple(self._video.labels[frame] for frame in frames),
            first_token=slot * self._tokens_per_frame,
            transform=self._transform,
            read_upto=None if self._has_memory else 0,
        )
        return (item,) * self.num_branches

    def advance(self, flows: Sequence[Tensor]) -> Advance:
        latents = self._latents()
        flow = self._guided(flows)
        timestep = self._timesteps()[-1]
        x0 = self._sampler.predict_x0(latents, flow, timestep)
        records = self._records(flows, flow, x0, timestep)
        if not self._has_memory:
            self._has_memory = True
            return Advance(records=records)
        self._x = self._keep_image(self._state(self._sampler.advance(latents, flow, self._step)))
        self._step += 1
        if self._step < self._sampler.num_steps:
            return Advance(records=records)
        chunk = CleanChunk(self._chunk, self._x)
        self._history += self._x.unbind(0)
        self._chunk += 1
        self._step, self._x = 0, None
        if not self.finished:
            self._begin_chunk()
        return Advance(chunks=(chunk,), records=records)

    @property
    def _first_frame(self) -> int:
        """The chunk's first latent frame in the video."""
        return self._num_context + self._chunk * self._settings.frames_per_chunk

    def _begin_chunk(self) -> None:
        self._take_text()
        self._memory = select_memory(
            self._video.cameras.world_to_camera,
            self._first_frame,
            settings=self._settings,
            points=self._video.points,
        )
        self._has_memory = not self._memory
        slots = [*self._memory, *self._chunk_frames()]
        projection, inverse = (
            send(matrices[slots], self._device) for matrices in self._projections
        )
        self._transform = TransformSet(
            (
                RopeTransform(self._grid),
                ProjectiveTransform(projection, inverse, self._tokens_per_frame),
            )
        )

    def _take_text(self) -> None:
        if self._next_text is not None:
            self._texts = (self._next_text, *self._texts[1:])
            self._next_text = None

    def _chunk_frames(self) -> range:
        return range(self._first_frame, self._first_frame + self._settings.frames_per_chunk)

    def _frames(self) -> Sequence[int]:
        """The latent frames of the next passes."""
        return self._chunk_frames() if self._has_memory else self._memory

    def _latents(self) -> Tensor:
        """Their latents, [F, C, h, w] in fp32."""
        if not self._has_memory:
            return torch.stack([self._history[frame] for frame in self._memory])
        if self._x is None:
            shape = (self._settings.frames_per_chunk, *self._video.inputs.latent_shape)
            noise = self._video.inputs.noise.start(self._chunk, shape)
            self._x = self._keep_image(self._state(noise))
        return self._x

    def _timesteps(self) -> tuple[float, ...]:
        clean = self._sampler.commit_timestep
        if not self._has_memory:
            return (clean,) * len(self._memory)
        noisy = (self._sampler.timesteps[self._step],) * self._settings.frames_per_chunk
        return (clean, *noisy[1:]) if self._holds_image else noisy

    @property
    def _holds_image(self) -> bool:
        return self._video.image is not None and self._first_frame == 0

    def _keep_image(self, latents: Tensor) -> Tensor:
        if not self._holds_image:
            return latents
        assert self._video.image is not None
        return torch.cat([self._state(self._video.image)[None], latents[1:]])

    def _state(self, latents: Tensor) -> Tensor:
        """Latents as they are kept between passes: fp32, rounded to bf16 where that is asked."""
        return _rounded(send(latents, self._device, torch.float32), self._round_latents)

    def _guided(self, flows: Sequence[Tensor]) -> Tensor:
        prompted = flows[0].float()
        if self.num_branches == 1:
            return prompted
        negative = flows[1].float()
        return negative + self._video.guidance_scale * (prompted - negative)

    def _unit(self, branch: int) -> PassUnit:
        num_tokens = len(self._frames()) * self._tokens_per_frame
        if self._has_memory:
            return PassUnit(branch=branch, kind=PassKind.DENOISE, num_tokens=num_tokens)
        intent = CommitIntent(
            branches=(branch,), num_tokens=num_tokens, at_token=0, free_first=True
        )
        return PassUnit(branch=branch, kind=PassKind.COMMIT, num_tokens=num_tokens, commit=intent)

    def _most_remembered(self) -> int:
        """Latent frames of the largest memory."""
        last = self._first_frame + (self.num_chunks - 1) * self._settings.frames_per_chunk
        capacity = self._settings.memory_frames
        return last if capacity is None else min(last, capacity)

    def _records(
        self, flows: Sequence[Tensor], guided: Tensor, x0: Tensor, timestep: float
    ) -> tuple[WorldPlayRecord, ...]:
        if not self._video.inputs.record_passes:
            return ()
        return tuple(
            WorldPlayRecord(
                chunk_index=self._chunk,
                branch=branch,
                step=self._step if self._has_memory else None,
                timestep=timestep,
                x0=x0.cpu(),
                flow=flow.cpu(),
                frames=tuple(self._frames()),
                guided_flow=guided.cpu(),
            )
            for branch, flow in enumerate(flows)
        )


def _rounded(x: Tensor, to_bf16: bool) -> Tensor:
    return x.bfloat16().float() if to_bf16 else x
