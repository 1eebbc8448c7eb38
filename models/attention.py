"""What a network asks of whoever runs its attention.

A network computes queries, keys and values for the tokens of a whole step and hands them over;
it knows nothing of pages, streams or positions. The engine answers from its pages, the training
script from dense tensors, a test from a plain loop.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor


class Attention(Protocol):
    """Attention over the tokens of one step, the tokens of all passes concatenated."""

    def self_attention(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend to the pass's cached tokens and to its own.

        All tensors are [tokens, heads, head_dim], after QK-norm and before RoPE. The channels of
        a head of queries and keys are in the internal order: rotation pair i is (i, i + head_dim
        / 2). Returns [tokens, heads, head_dim].
        """
        ...

    def cross_attention(self, layer: int, queries: Tensor) -> Tensor:
        """Attend to the text of each pass; queries and result are [tokens, heads, head_dim]."""
        ...


@runtime_checkable
class EngineAttention(Attention, Protocol):
    """What the engine gives: also attention under several read transforms at once."""

    def self_attentions(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        with_text: bool = False,
    ) -> tuple[Tensor, ...]:
        """`self_attention` once under each read transform of the passes (a `TransformSet`).

        Keys and values are stored once. `with_text` prepends the text of each pass, which no
        transform touches but in the output; its keys are in the internal channel order then.
        """
        ...
