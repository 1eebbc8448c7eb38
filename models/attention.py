"""What a network asks of whoever runs its attention.

A network computes queries, keys and values for the tokens of a whole step and hands them over;
it knows nothing of pages, streams or positions. The engine answers from its pages, the training
script from dense tensors, a test from a plain loop.
"""

from typing import Protocol

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
