"""UMT5 through transformers: folders, the original file's names, and what prompts become."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qvg_engine.errors import CheckpointError, ConfigError, RequestError
from qvg_engine.models.text.umt5 import Umt5Encoder, load_umt5, published_umt5
from qvg_engine.models.turns import Turns

Save = Callable[..., Path]


def original_state(umt5: Any) -> dict[str, torch.Tensor]:
    """The tensors under the names of models_t5_umt5-xxl-enc-bf16.pth."""
    encoder = umt5.encoder
    state = {"token_embedding.weight": umt5.shared.weight}
    state["norm.weight"] = encoder.final_layer_norm.weight
    for index, block in enumerate(encoder.block):
        attention, feed = block.layer[0], block.layer[1]
        bias = attention.SelfAttention.relative_attention_bias
        tensors = {
            "norm1": attention.layer_norm,
            **{f"attn.{name}": getattr(attention.SelfAttention, name) for name in "qkvo"},
            "pos_embedding.embedding": bias,
            "norm2": feed.layer_norm,
            "ffn.gate.0": feed.DenseReluDense.wi_0,
            "ffn.fc1": feed.DenseReluDense.wi_1,
            "ffn.fc2": feed.DenseReluDense.wo,
        }
        for name, part in tensors.items():
            state[f"blocks.{index}.{name}.weight"] = part.weight
    return {key: value.detach().clone() for key, value in state.items()}


def expected_rows(umt5: Any, ids: list[int]) -> torch.Tensor:
    """As the original does it: padded to a length, masked, and cut."""
    padded = torch.tensor([ids + [0] * (9 - len(ids))])
    mask = (torch.arange(9) < len(ids)).long()[None]
    rows: torch.Tensor = umt5(input_ids=padded, attention_mask=mask).last_hidden_state[0]
    return rows[: len(ids)]


@pytest.fixture(params=["folder", "shards", "original"])
def encoder(
    request: Any, umt5: Any, umt5_tokenizer: Path, save_umt5: Save, tmp_path: Path
) -> Umt5Encoder:
    if request.param == "original":
        path = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
        torch.save(original_state(umt5), path)
    else:
        path = save_umt5(umt5, tmp_path / "te", sharded=request.param == "shards")
    return load_umt5(path, umt5_tokenizer, text_len=6)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a red fox", [3, 4, 5, 1]),
        ("  a  red\n fox ", [3, 4, 5, 1]),
        ("a &amp;amp; fox", [3, 6, 5, 1]),
        ("caf\u00c3\u00a9", [7, 1]),
        ("fox " * 9, [5] * 5 + [1]),
    ],
)
def test_rows_are_those_of_a_padded_run(
    umt5: Any, encoder: Umt5Encoder, prompt: str, ids: list[int]
) -> None:
    rows, unknown = encoder.encode(prompt)
    assert unknown == ()
    torch.testing.assert_close(rows, expected_rows(umt5, ids), atol=1e-5, rtol=1e-5)


def test_a_prompt_without_text(encoder: Umt5Encoder) -> None:
    with pytest.raises(RequestError, match="empty"):
        encoder.encode(" \n ")


def test_bytes_count_tied_weights_once(umt5: Any, encoder: Umt5Encoder) -> None:
    tensors = {name: value for name, value in umt5.state_dict().items() if "shared" not in name}
    assert encoder.num_bytes == sum(value.nbytes for value in tensors.values())


def test_the_encoder_takes_its_turn(
    umt5: Any, umt5_tokenizer: Path, save_umt5: Save, tmp_path: Path
) -> None:
    turns = Turns("cpu")
    path = save_umt5(umt5, tmp_path / "te")
    rows, _ = load_umt5(path, umt5_tokenizer, turns=turns).encode("a fox")
    torch.testing.assert_close(rows, expected_rows(umt5, [3, 5, 1]), atol=1e-5, rtol=1e-5)


def test_published_size() -> None:
    assert published_umt5(torch.bfloat16).num_bytes == pytest.approx(2 * 5.68e9, rel=1e-2)


def test_wrong_files_are_told(
    umt5: Any, umt5_tokenizer: Path, save_umt5: Save, tmp_path: Path
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "t5.pth")
    with pytest.raises(CheckpointError, match="not a UMT5 encoder"):
        load_umt5(tmp_path / "t5.pth", umt5_tokenizer)
    path = save_umt5(umt5, tmp_path / "te")
    with pytest.raises(ConfigError, match="is no folder"):
        load_umt5(path, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_umt5(tmp_path / "empty", umt5_tokenizer)


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, umt5_tokenizer: Path, tmp_path: Path
) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("qvg_engine.models.packages.importlib.import_module", refuse)
    with pytest.raises(
        ConfigError, match=r"needs transformers.*pip install 'qvg-engine\[models\]'"
    ):
        load_umt5(tmp_path, umt5_tokenizer)
