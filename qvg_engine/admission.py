"""From a request to a stream: what it asks for is checked against the model, once."""

import torch
from torch import Tensor

from qvg_engine.errors import RequestError
from qvg_engine.models.family import ModelFamily
from qvg_engine.models.noise import GivenNoise, KeyedNoise, NoiseSource
from qvg_engine.models.program import StreamInputs, TextRows
from qvg_engine.request import VideoRequest
from qvg_engine.stream import Stream


def open_stream(
    request: VideoRequest, *, family: ModelFamily, page_size: int
) -> tuple[Stream, tuple[str, ...]]:
    """A stream for the request, and the words of its prompt that the model does not know.

    Raises `RequestError` naming the request, the field and what the model takes.
    """
    if request.output == "video" and family.codec is None:
        raise RequestError(
            f"request {request.request_id!r}: model {family.name!r} has no VAE here: ask for "
            "output='latents'"
        )
    _check_conditions(request, family)
    text, unknown_words = encode_text(
        family, request.request_id, prompt=request.prompt, prompt_embeds=request.prompt_embeds
    )
    latent_shape, num_frames = _size(request, family)
    _check_context(request, latent_shape)
    inputs = StreamInputs(
        text=text,
        num_frames=num_frames,
        latent_shape=latent_shape,
        noise=_noise(request, family, latent_shape, num_frames),
        context_latents=request.context_latents,
        conditions=request.conditions,
        record_passes=request.trace,
    )
    return Stream(request, family.open(inputs, page_size=page_size)), unknown_words


def encode_text(
    family: ModelFamily, request_id: str, *, prompt: str | None, prompt_embeds: Tensor | None
) -> tuple[TextRows, tuple[str, ...]]:
    """The text of a branch, and the words that the model does not know."""
    unknown_words: tuple[str, ...] = ()
    if prompt_embeds is None:
        assert prompt is not None
        if family.prompt_encoder is None:
            raise RequestError(
                f"request {request_id!r}: model {family.name!r} has no text encoder here: give "
                "prompt_embeds [L, text_dim]"
            )
        prompt_embeds, unknown_words = family.prompt_encoder.encode(prompt)
    text_len, text_dim = family.settings.text_len, family.text_dim
    shape = tuple(prompt_embeds.shape)
    if len(shape) != 2 or shape[1] != text_dim or shape[0] > text_len:
        raise RequestError(
            f"request {request_id!r}: prompt_embeds is {list(shape)}: give [L, {text_dim}] with "
            f"L up to {text_len}"
        )
    if not prompt_embeds.isfinite().all():
        raise RequestError(f"request {request_id!r}: prompt_embeds has NaN or Inf")
    # On the host, so that the step that admits the stream need not wait to compare texts.
    return TextRows(prompt_embeds.detach().cpu(), text_len), unknown_words


def _check_conditions(request: VideoRequest, family: ModelFamily) -> None:
    given = request.conditions
    if given is not None and not isinstance(given, family.conditions_type):
        raise RequestError(
            f"request {request.request_id!r}: conditions is {type(given).__name__}: model "
            f"{family.name!r} takes {family.conditions_type.__name__}"
        )


def _size(request: VideoRequest, family: ModelFamily) -> tuple[tuple[int, int, int], int]:
    """(C, h, w) of a latent frame, and the latent frames to generate."""
    settings = family.settings
    if request.noise is not None:
        _check_latents(request, "noise", request.noise)
        frames, channels, height, width = request.noise.shape
        if frames % settings.frames_per_chunk:
            raise RequestError(
                f"request {request.request_id!r}: noise has {frames} latent frames: give a "
                f"multiple of frames_per_chunk, {settings.frames_per_chunk}"
            )
        wanted = _latent_frames(request, family)
        if wanted is not None and wanted != frames:
            raise RequestError(
                f"request {request.request_id!r}: num_frames {request.num_frames} takes {wanted} "
                f"latent frames, but noise has {frames}: leave num_frames out"
            )
        return (channels, height, width), frames
    wanted = _latent_frames(request, family)
    assert wanted is not None
    return settings.latent_shape, wanted


def _latent_frames(request: VideoRequest, family: ModelFamily) -> int | None:
    if request.num_frames is None:
        return None
    context = 0
    if request.context_latents is not None and request.context_latents.ndim:
        context = len(request.context_latents)
    return chunked_latent_frames(
        family, request.num_frames, request_id=request.request_id, context_frames=context
    )


def chunked_latent_frames(
    family: ModelFamily, num_frames: int, *, request_id: str, context_frames: int = 0
) -> int:
    """Latent frames, in whole chunks, that cover `num_frames` pixel frames after a context.

    Raises `RequestError` where there is no VAE that says how long a latent frame is.
    """
    if family.codec is None:
        raise RequestError(
            f"request {request_id!r}: num_frames counts pixel frames, and model {family.name!r} "
            "has no VAE here: give noise [F, C, h, w] instead"
        )
    chunk, codec = family.settings.frames_per_chunk, family.codec
    frames = codec.latent_frames(num_frames)
    if context_frames:
        before = codec.pixel_frames(context_frames)
        frames = codec.latent_frames(before + num_frames) - context_frames
    return -(-frames // chunk) * chunk


def _check_latents(request: VideoRequest, name: str, value: Tensor) -> None:
    if value.ndim != 4 or 0 in value.shape:
        raise RequestError(
            f"request {request.request_id!r}: {name} is {list(value.shape)}: give [F, C, h, w]"
        )
    if not value.isfinite().all():
        raise RequestError(f"request {request.request_id!r}: {name} has NaN or Inf")


def _check_context(request: VideoRequest, latent_shape: tuple[int, int, int]) -> None:
    context = request.context_latents
    if context is None:
        return
    _check_latents(request, "context_latents", context)
    if tuple(context.shape[1:]) != latent_shape:
        raise RequestError(
            f"request {request.request_id!r}: context_latents is {list(context.shape)}: give "
            f"[F, {', '.join(str(size) for size in latent_shape)}]"
        )


def _noise(
    request: VideoRequest,
    family: ModelFamily,
    latent_shape: tuple[int, int, int],
    num_frames: int,
) -> NoiseSource:
    keyed = KeyedNoise(request.seed)
    if request.noise is None:
        return keyed
    chunk = family.settings.frames_per_chunk
    renoise = request.renoise
    if renoise is not None:
        steps = len(family.settings.timesteps)
        expected = (num_frames // chunk, steps - 1, chunk, *latent_shape)
        if tuple(renoise.shape) != expected:
            raise RequestError(
                f"request {request.request_id!r}: renoise is {list(renoise.shape)}: give "
                f"{list(expected)} ([chunks, steps - 1, frames per chunk, C, h, w])"
            )
        if not renoise.isfinite().all():
            raise RequestError(f"request {request.request_id!r}: renoise has NaN or Inf")
    noise = request.noise.to(torch.float32)
    return GivenNoise(noise, renoise, frames_per_chunk=chunk, keyed=keyed)
