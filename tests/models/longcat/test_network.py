"""The network in half precision, and its view of a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qvg_engine.models.longcat.network import LongCatNetwork
from tests.models.longcat.toy import make_engine, make_family, make_network, make_request


class NoAttention:
    """Values as they are, and text that must not be looked at."""

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return values

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return torch.full_like(queries, torch.nan)


class AnyText(NoAttention):
    """Text that is the same for everyone."""

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        return torch.ones_like(queries)


def forward(network: LongCatNetwork, timesteps: list[float], **options: Any) -> Tensor:
    patches = torch.linspace(-1, 1, 2 * len(timesteps) * 16).view(-1, 16)
    given = {
        "attention": NoAttention(),
        "tokens_per_pass": [len(patches)],
        "reads_text": [False],
        **options,
    }
    times = torch.tensor(timesteps, dtype=torch.float64)
    flow: Tensor = network(patches, times, [2] * len(timesteps), **given)
    return flow


def test_timesteps_are_rounded_to_the_dtype() -> None:
    network = make_network()
    exact = forward(network, [973.01, 972.0])
    half = make_network().bfloat16()
    assert torch.equal(forward(half, [973.01]), forward(half, [972.0]))
    assert not torch.equal(forward(network, [973.01]), forward(network, [972.0]))
    assert exact.dtype == forward(half, [972.0]).dtype == torch.float32


def test_modulation_is_computed_in_single_precision() -> None:
    """In bf16 the weights round, but not what is between them and the gates."""
    half = make_network().bfloat16()
    rounded = make_network().bfloat16().float()
    time = half.t_embedder(torch.tensor([900.0]), None)
    assert time.dtype == torch.float32
    assert torch.equal(time, rounded.t_embedder(torch.tensor([900.0]), None))


def test_text_is_given_to_those_that_read_it() -> None:
    network = make_network()
    times = [900.0, 900.0, 100.0]
    mixed = {"tokens_per_pass": [4, 2], "attention": AnyText()}
    none = forward(network, times, **{**mixed, "reads_text": [False, False]})
    some = forward(network, times, **{**mixed, "reads_text": [True, False]})
    both = forward(network, times, **{**mixed, "reads_text": [True, True]})
    torch.testing.assert_close(some[4:], none[4:])
    torch.testing.assert_close(some[:4], both[:4])
    assert float((none - both).abs().amax(dim=1).min()) > 1e-3
    # What is not used may be anything.
    assert forward(network, times, tokens_per_pass=[6]).isfinite().all()


@pytest.mark.parametrize("context", [0, 2])
def test_noise_of_a_continued_clip_is_drawn_in_the_dtype(run: Any, context: int) -> None:
    engine = make_engine(make_family(make_network().bfloat16()), dtype="bfloat16")
    conditions = {"guidance": 1, "num_steps": 2}
    request = make_request("a", context=context, conditions=conditions, trace=True)
    first = run(engine, request).last("a").trace.passes[1 if context else 0]
    assert first.step == 0
    noise = request.noise
    assert noise is not None
    # The first level is 1.
    start = first.x0 - first.flow
    expected = noise.bfloat16().float() if context else noise
    torch.testing.assert_close(start, expected, atol=1e-5, rtol=0)
    assert float((noise - noise.bfloat16().float()).abs().max()) > 1e-4
