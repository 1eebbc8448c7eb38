"""The written-out attention equals the plain one, forward and backward."""

import pytest
import torch
from torch import Tensor

from qvg_engine.models.pocket import chunk_attention
from qvg_engine.models.pocket.chunk_attention import attend_chunks

TOKENS = 5


def plain(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    clean_keys: Tensor,
    clean_values: Tensor,
    copies: int,
    first: int,
    window: int,
) -> Tensor:
    """Every copy of every chunk by itself, by automatic differentiation."""
    outputs = []
    for place in range(queries.shape[2] // (TOKENS * copies)):
        chunk = first + place
        seen = slice(max(0, chunk - window + 1) * TOKENS, chunk * TOKENS)
        for copy in range(copies):
            begin = (place * copies + copy) * TOKENS
            own = slice(begin, begin + TOKENS)
            k = torch.cat([clean_keys[:, :, seen], keys[:, :, own]], dim=2)
            v = torch.cat([clean_values[:, :, seen], values[:, :, own]], dim=2)
            outputs.append((queries[:, :, own] @ k.mT).softmax(-1) @ v)
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize(
    ("chunks", "copies", "first", "window"),
    [(1, 1, 0, 16), (1, 2, 0, 16), (4, 2, 0, 16), (4, 1, 0, 3), (3, 2, 4, 3), (2, 3, 5, 16)],
)
def test_it_equals_plain_attention_and_its_gradient(
    chunks: int, copies: int, first: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_attention, "WINDOW_CHUNKS", window)
    torch.manual_seed(chunks + 10 * copies)
    own = (2, 3, chunks * copies * TOKENS, 4)
    context = (2, 3, (first + chunks - 1) * TOKENS, 4)
    inputs = [torch.randn(own).double().requires_grad_() for _ in range(3)]
    inputs += [torch.randn(context).double().requires_grad_() for _ in range(2)]
    weight = torch.randn(own).double()
    queries, keys, values, *clean = inputs
    attended = attend_chunks(
        queries,
        keys,
        values,
        context=(clean[0], clean[1]),
        chunk_tokens=TOKENS,
        copies=copies,
        first=first,
    )
    expected = plain(queries, keys, values, clean[0], clean[1], copies, first, window)
    torch.testing.assert_close(attended, expected)
    gradients = torch.autograd.grad((attended * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if want is None else want)
