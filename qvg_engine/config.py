"""The engine's settings, checked once."""

from typing import Literal, get_args

import msgspec
import torch
from msgspec import UNSET, UnsetType

from qvg_engine.allocation import Allocation
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.block_manager.format import LayerFormats, PageFormat, get_format
from qvg_engine.checks import check_choice, check_range
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.paged_attention import Strategy
from qvg_engine.models.rollout import Positions

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MIN_PAGE_SIZE, MAX_PAGE_SIZE = 1, 1024


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an engine depends on besides its requests.

    The model and how it is rolled out; a field that is None (or `UNSET`) takes the model's own
    value:

    * `model`: "pocket", the embedded model; a folder of that kind; the path of a weights file; or
      a folder with published or diffusers-style files (docs/models.md).
    * `lora`: the path of a LoRA that is merged into the network, `lora_alpha` its alpha (None: its
      rank). None takes the one that a published model comes with.
    * `vae`, `text_encoder`, `tokenizer`: paths of what a network needs beside it; None looks for
      them near the model.
    * `vae_attention_frames`: how many latent frames the VAE of HunyuanVideo-1.5 attends to; None is
      all of them, and then a decoder's state grows with its video.
    * `offload`: keep weights in host memory, and have network, VAE and text encoder take turns on
      the device.
    * `latent_shape`: (channels, height, width) of a latent frame, where a request brings no noise.
    * `frames_per_chunk`, `window_frames` (None: full history), `sink_frames`: latent frames; the
      window counts the sink and the chunk itself.
    * `timesteps`, `warp_timesteps`, `shift`, `commit_timestep`: the sampler.
    * `text_len`: text rows that the network attends to, padding included.
    * `positions`: "absolute", or "window" for positions within the window.
    * `rollout_frames`, `overlap_frames`: latent frames of a rollout, and what the next keeps of it.
    * `num_heads`: attention heads, where they are not of 128 channels.

    The KV-cache and the step:

    * `kv_format`: how pages store K and V: "dense", "bf16", or with codebooks "qvg", "qvg-pro",
      "q4", "q2", "q1"; or a `PageFormat`. `value_format` overrides it for V. Or an `Allocation`,
      which says it for both and for every layer of the model.
    * `codebook_overhead`, `refinement_overhead`: bits per element that a stream's codebooks, and
      second pages which refine its newest tokens, may add. None: what an allocation says, or 0.33
      together with a window, 0.09 with the full history; 0.133 and 0.025 of it are of refinements
      in "q4", "q2" and "q1", 0 in other formats. `codebooks`: when they are fitted anew.
    * `page_size`: tokens of a page. `kv_memory`: bytes of all pages, preallocated.
    * `workspace_tokens`: decoded tokens that attention holds at once; None fits the window (or
      32,768 tokens), longer histories are merged piece by piece.
    * `attention_backend`: "workspace", which decodes pages to a buffer; "fused", which decodes
      them inside of attention: on GPUs, for few queries; "eight-bit", which decodes them to INT8
      and E4M3 and multiplies in 8 bits, for heads of 32, 64 or 128 channels, on the CPU slowly;
      "reference" for plain torch. "auto" takes one of the first two for each pass, by their times
      on this GPU, which are measured when the engine is made; "workspace" on a CPU, or where
      "fused" cannot be had.
    * `max_streams`, `max_batch_tokens`, `aging_steps`: see `SchedulerConfig`.
    * `decoder_slots`: streams whose decoder state is on the device; None: `max_streams`.
      `spilled_decoders`: further ones, whose state waits in host memory between their chunks.
    * `max_text_rows`: text rows of all admitted streams together.
    * `batch_invariant`: bit-equal videos whatever else is in the batch, at some cost.
    * `device`: "auto", "cpu" or "cuda"; `dtype`: "float32", "float16" or "bfloat16".

    Raises `ConfigError` naming field, value and range.
    """

    model: str = "pocket"
    lora: str | None = None
    lora_alpha: float | None = None
    vae: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    vae_attention_frames: int | None = None
    offload: bool = False
    latent_shape: tuple[int, int, int] | None = None
    frames_per_chunk: int | None = None
    window_frames: int | UnsetType | None = UNSET
    sink_frames: int | None = None
    timesteps: tuple[float, ...] | None = None
    warp_timesteps: bool | None = None
    shift: float | None = None
    commit_timestep: float | None = None
    text_len: int | None = None
    positions: Positions | None = None
    rollout_frames: int | UnsetType | None = UNSET
    overlap_frames: int | None = None
    num_heads: int | None = None

    kv_format: str | PageFormat | Allocation = "q2"
    value_format: str | PageFormat | None = None
    codebook_overhead: float | None = None
    refinement_overhead: float | None = None
    codebooks: CodebookPolicy = CodebookPolicy()
    page_size: int = 64
    kv_memory: int = 2 * 1024**3
    workspace_tokens: int | None = None
    attention_backend: Strategy | Literal["auto"] = "auto"
    max_streams: int = 16
    max_batch_tokens: int = 65_536
    aging_steps: int = 64
    decoder_slots: int | None = None
    spilled_decoders: int = 0
    max_text_rows: int = 65_536
    batch_invariant: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.kv_format, Allocation):
            get_format(self.kv_format)
        elif self.value_format is not None:
            raise ConfigError(
                f"value_format is {self.value_format!r}, but kv_format is an allocation, which "
                "says it for every layer: give one of them"
            )
        if self.value_format is not None:
            get_format(self.value_format)
        check_choice("attention_backend", self.attention_backend, ("auto", *get_args(Strategy)))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("dtype", self.dtype, tuple(_DTYPES))
        check_range("page_size", self.page_size, MIN_PAGE_SIZE, MAX_PAGE_SIZE)
        check_range("kv_memory", self.kv_memory, 1, 2**50)
        check_range("max_text_rows", self.max_text_rows, 1, 2**40)
        if self.workspace_tokens is not None:
            check_range("workspace_tokens", self.workspace_tokens, 1, 2**31)
        if self.decoder_slots is not None:
            check_range("decoder_slots", self.decoder_slots, 0, 65_536)
        check_range("spilled_decoders", self.spilled_decoders, 0, 65_536)
        if self.num_heads is not None:
            check_range("num_heads", self.num_heads, 1, 65_536)
        if self.vae_attention_frames is not None:
            check_range("vae_attention_frames", self.vae_attention_frames, 1, 2**31)
        if self.lora_alpha is not None and not 0 < self.lora_alpha < float("inf"):
            raise ConfigError(f"lora_alpha is {self.lora_alpha}: give a positive number")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "device is 'cuda', but torch sees no CUDA device: use 'cpu' or 'auto'"
            )

    @property
    def layer_formats(self) -> tuple[LayerFormats, ...]:
        """The formats of K and V: one pair for every layer, or one for all of them."""
        if isinstance(self.kv_format, Allocation):
            return self.kv_format.layers
        keys = get_format(self.kv_format)
        values = keys if self.value_format is None else get_format(self.value_format)
        return (LayerFormats(keys=keys, values=values),)

    @property
    def torch_device(self) -> torch.device:
        """The device that the engine runs on."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return _DTYPES[self.dtype]

    @property
    def num_decoder_slots(self) -> int:
        """Decoder states on the device, where nothing is given one a stream."""
        return self.max_streams if self.decoder_slots is None else self.decoder_slots

    @property
    def num_decoders(self) -> int:
        """Decoder states in all, with those in host memory."""
        return self.num_decoder_slots + self.spilled_decoders
