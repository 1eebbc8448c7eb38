"""The UMT5 encoder of the Wan models and LongCat, through transformers.

A prompt's rows are the encoder's last hidden states of its tokens, the end token included. The
padding that the networks attend to is left to the engine.
"""

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvg_engine.errors import CheckpointError, ConfigError, RequestError
from qvg_engine.models.packages import require_package
from qvg_engine.models.shards import read_json, safetensors_in
from qvg_engine.models.turns import Turns, turn
from qvg_engine.models.wan.checkpoint import check_keys
from qvg_engine.models.weights import Weights, fill_module

ORIGINAL_NAMES = ("models_t5_umt5-xxl-enc-bf16.pth", "models_t5_umt5-xxl-enc-bf16.safetensors")

_WHAT = "the UMT5 text encoder"
_EMBEDDING = "encoder.embed_tokens.weight"
_TIED = "shared.weight"
_ORIGINAL_TO_TRANSFORMERS = (
    (r"^token_embedding\.", "encoder.embed_tokens."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.", r"encoder.block.\1."),
    (r"\.norm1\.", ".layer.0.layer_norm."),
    (r"\.attn\.", ".layer.0.SelfAttention."),
    (r"\.pos_embedding\.embedding\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.norm2\.", ".layer.1.layer_norm."),
    (r"\.ffn\.gate\.0\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".layer.1.DenseReluDense.wo."),
)


class Umt5Encoder:
    """A tokenizer and an encoder behind the engine's prompt interface."""

    def __init__(
        self, model: Any, tokenizer: Any, *, text_len: int = 512, turns: Turns | None = None
    ) -> None:
        """`model` is a UMT5EncoderModel; with `turns` it is on the device only while in use.

        Tokens beyond `text_len` are dropped. Raises `ConfigError` without ftfy.
        """
        self._clean = require_package("ftfy", what=_WHAT).fix_text
        self.model = model
        self._tokenizer = tokenizer
        self._text_len = text_len
        self._turns = turns
        parameter = next(model.parameters())
        self._device = parameter.device if turns is None else turns.device

    @property
    def text_dim(self) -> int:
        """Channels of a row."""
        return int(self.model.config.d_model)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, those that are tied counted once."""
        state = self.model.state_dict()
        return sum(value.nbytes for name, value in state.items() if name != _TIED)

    @torch.inference_mode()
    def encode(self, prompt: str) -> tuple[Tensor, tuple[str, ...]]:
        """Rows [L, text_dim] of a prompt in any language; no word is unknown.

        Raises `RequestError` for a prompt without text.
        """
        text = " ".join(html.unescape(html.unescape(self._clean(prompt))).split())
        if not text:
            raise RequestError("the prompt is empty: describe a video")
        tokens = self._tokenizer(
            text, truncation=True, max_length=self._text_len, return_tensors="pt"
        )
        ids = tokens.input_ids.to(self._device)
        with turn(self._turns, self.model):
            states = self.model(input_ids=ids).last_hidden_state
        rows: Tensor = states[0].float().cpu()
        # A copy that autograd-free code elsewhere may use in place.
        return rows.clone(), ()


def load_umt5(
    path: Path,
    tokenizer: Path,
    *,
    text_len: int = 512,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    turns: Turns | None = None,
) -> Umt5Encoder:
    """An encoder from a transformers folder, or from a file with Wan's original names.

    `tokenizer` is a folder as google/umt5-xxl is published. With `turns` the weights stay in host
    memory. Raises `CheckpointError` for files that are missing, broken or of another model, and
    `ConfigError` without the packages.
    """
    transformers = require_package("transformers", what=_WHAT)
    weights = Weights(safetensors_in(path, "model") if path.is_dir() else [path])
    names = {name: name for name in weights.shapes}
    if "token_embedding.weight" in names:
        names = {_transformers_name(name): name for name in names}
    for tied, home in ((_TIED, _EMBEDDING), (_EMBEDDING, _TIED)):
        if tied not in names and home in names:
            names[tied] = names[home]
    shapes = {name: weights.shapes[file_name] for name, file_name in names.items()}
    settings = read_json(path / "config.json") if path.is_dir() else _sizes(shapes, path)
    config = transformers.UMT5Config(**settings)
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(config)
    check_keys(model.state_dict(), shapes)
    where = "cpu" if turns is not None and torch.device(device).type != "meta" else device
    fill_module(model, weights, names, device=where, dtype=dtype)
    if turns is not None:
        turns.add(model)
    loaded = _load_tokenizer(transformers, tokenizer)
    return Umt5Encoder(model, loaded, text_len=text_len, turns=turns)


def published_umt5(dtype: torch.dtype) -> Umt5Encoder:
    """UMT5-XXL without weights, to plan with; `ConfigError` without transformers."""
    transformers = require_package("transformers", what=_WHAT)
    config = transformers.UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    )
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(config).to(dtype)
    return Umt5Encoder(model, None)


def _load_tokenizer(transformers: Any, folder: Path) -> Any:
    if not folder.is_dir():
        raise ConfigError(f"tokenizer {folder} is no folder: give one as google/umt5-xxl is")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"tokenizer {folder} cannot be loaded: {reason}") from error


def _transformers_name(name: str) -> str:
    for pattern, replacement in _ORIGINAL_TO_TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    return name


def _sizes(shapes: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The sizes of an encoder, read from its weights."""
    attention = "encoder.block.0.layer.0.SelfAttention."
    try:
        vocab_size, d_model = shapes[_EMBEDDING].shape
        buckets, heads = shapes[f"{attention}relative_attention_bias.weight"].shape
        return {
            "vocab_size": vocab_size,
            "d_model": d_model,
            "num_heads": heads,
            "d_kv": len(shapes[f"{attention}q.weight"]) // heads,
            "d_ff": len(shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]),
            "num_layers": _num_layers(shapes),
            "relative_attention_num_buckets": buckets,
            "feed_forward_proj": "gated-gelu",
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a UMT5 encoder: {error} is missing") from error


def _num_layers(names: Iterable[str]) -> int:
    return len({name.split(".")[2] for name in names if name.startswith("encoder.block.")})
