"""Loading weights: every wrong file is one clear line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qvg_engine.errors import CheckpointError
from qvg_engine.models.wan.checkpoint import load_wan
from qvg_engine.models.wan.layout import to_internal, to_published
from qvg_engine.models.wan.network import WanNetwork


@pytest.fixture
def published(toy: Any) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = to_published(
        toy.network.state_dict(), toy.network.config.head_dim
    )
    return {key: value.contiguous() for key, value in weights.items()}


def test_sizes_are_read_from_the_weights(
    toy: Any, published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(published, tmp_path / "w.safetensors")
    network = load_wan(tmp_path / "w.safetensors", num_heads=2)
    assert network.config == toy.network.config
    for key, value in toy.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


@pytest.mark.parametrize("name", ["generator", "generator_ema", "model"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "_fsdp_wrapped_module."])
def test_names_and_prefixes(
    published: dict[str, torch.Tensor], tmp_path: Path, name: str, prefix: str
) -> None:
    torch.save({name: {prefix + k: v for k, v in published.items()}}, tmp_path / "w.pt")
    network = load_wan(tmp_path / "w.pt", num_heads=2)
    assert isinstance(network, WanNetwork)


def test_the_averaged_generator_comes_first(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    other = {key: value + 1 for key, value in published.items()}
    torch.save({"generator": other, "generator_ema": published}, tmp_path / "w.pt")
    network = load_wan(tmp_path / "w.pt", num_heads=2)
    expected = published["head.head.bias"]
    assert torch.equal(network.state_dict()["head.head.bias"], expected)


def test_layouts_are_inverse(published: dict[str, torch.Tensor], toy: Any) -> None:
    head_dim = toy.network.config.head_dim
    there = to_internal(published, head_dim)
    assert not torch.equal(
        there["blocks.0.self_attn.q.weight"], published["blocks.0.self_attn.q.weight"]
    )
    assert torch.equal(
        there["blocks.0.cross_attn.q.weight"], published["blocks.0.cross_attn.q.weight"]
    )
    back = to_published(there, head_dim)
    assert all(torch.equal(back[key], published[key]) for key in published)


def missing(weights: dict[str, torch.Tensor]) -> None:
    del weights["blocks.1.ffn.2.bias"]


def left_over(weights: dict[str, torch.Tensor]) -> None:
    weights["blocks.0.extra.weight"] = torch.zeros(1)


def wrong_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["blocks.1.norm3.weight"] = torch.zeros(5)


def another_model(weights: dict[str, torch.Tensor]) -> None:
    weights.clear()
    weights["transformer.h.0.attn.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, r"missing: blocks\.1\.ffn\.2\.bias"),
        (left_over, r"left over: blocks\.0\.extra\.weight"),
        (wrong_shape, r"blocks\.1\.norm3\.weight is \[5\], not \[48\]"),
        (another_model, "not a causal Wan network"),
    ],
)
def test_wrong_weights_are_listed(
    published: dict[str, torch.Tensor], tmp_path: Path, spoil: Any, words: str
) -> None:
    spoil(published)
    save_file(published, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_wan(tmp_path / "w.safetensors", num_heads=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 1000])
def test_truncated_files(
    published: dict[str, torch.Tensor], tmp_path: Path, suffix: str, kept: int
) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(published, path)
    else:
        save_file(published, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="corrupt or truncated") as caught:
        load_wan(path)
    assert "\n" not in str(caught.value)


class Surprise:
    """What a pickle may smuggle in."""

    def __reduce__(self) -> Any:
        return (print, ("this ran",))


def test_pickled_code_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"generator": Surprise()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_wan(tmp_path / "w.pt")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing.pt", "does not exist"), ("notes.txt", "not a weights file")],
)
def test_paths_that_hold_no_weights(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=words):
        load_wan(tmp_path / name)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="not a network's state dict"):
        load_wan(tmp_path / "w.pt")
