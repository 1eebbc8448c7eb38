"""Cross-attention K and V of texts, shared by all branches that have the same text.

Padding rows are equal, and equal rows have equal keys and values: where there are many, the pool
keeps one of them with the logarithm of their number as weight, which is the same attention.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvg_engine.kernels.device_table import send
from qvg_engine.kernels.paged_attention import DenseSegment
from qvg_engine.models.program import TextRows

# A weight rounds differently from a sum over equal rows. Fewer rows than this are kept as they are:
# they take little, and every bit stays what it is in an implementation that pads.
MIN_COLLAPSED_ROWS = 64

KeysValues = Sequence[tuple[Tensor, Tensor]]


class TextEntry:
    """K and V of one text, a segment per layer, with the number of branches that use it."""

    def __init__(self, key: str, text: TextRows, keys_values: KeysValues) -> None:
        self.key = key
        self.num_users = 0
        self.num_rows = len(text.rows)
        self.num_collapsed = _num_collapsed(text)
        weights = None
        if self.num_collapsed:
            weights = torch.zeros(self.num_rows + 1, dtype=torch.float32)
            weights[-1] = math.log(self.num_collapsed)
            weights = send(weights, keys_values[0][0].device)
        self.layers = [
            DenseSegment(keys=keys, values=values, log_weights=weights)
            for keys, values in keys_values
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of K and V."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def expanded(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V with every padding row, [padded_len, heads, head_dim]."""
        segment = self.layers[layer]
        if not self.num_collapsed:
            return segment.keys, segment.values
        repeats = [1] * self.num_rows + [self.num_collapsed]
        counts = torch.tensor(repeats, device=segment.keys.device)
        return (
            segment.keys.repeat_interleave(counts, dim=0),
            segment.values.repeat_interleave(counts, dim=0),
        )


class TextPool:
    """Reference-counted texts; `compute` turns rows [L, text_dim] into K and V of every layer."""

    def __init__(self, compute: Callable[[Tensor], KeysValues]) -> None:
        self._compute = compute
        self._entries: dict[str, TextEntry] = {}

    @property
    def num_entries(self) -> int:
        """Texts that are held."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of K and V that are held."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def acquire(self, text: TextRows) -> TextEntry:
        """The entry of a text, computed unless another branch has it."""
        key = _key(text)
        entry = self._entries.get(key)
        if entry is None:
            entry = TextEntry(key, text, self._compute(_kept_rows(text)))
            self._entries[key] = entry
        entry.num_users += 1
        return entry

    def release(self, entry: TextEntry) -> None:
        """Give up one use; the last frees the entry."""
        assert entry.num_users > 0, entry.key
        entry.num_users -= 1
        if not entry.num_users:
            del self._entries[entry.key]

    def check_integrity(self, num_users: int) -> None:
        """Raise AssertionError unless the entries have this many users together."""
        counted = sum(entry.num_users for entry in self._entries.values())
        assert counted == num_users, f"texts have {counted} users, {num_users} branches hold one"


def _num_collapsed(text: TextRows) -> int:
    """Padding rows that one row stands for; 0 if all rows are kept."""
    num_padding = text.padded_len - len(text.rows)
    return num_padding if num_padding >= MIN_COLLAPSED_ROWS else 0


def _kept_rows(text: TextRows) -> Tensor:
    """The rows whose K and V are kept, the padding's last."""
    num_padding = 1 if _num_collapsed(text) else text.padded_len - len(text.rows)
    return torch.cat([text.rows, text.rows.new_zeros(num_padding, text.rows.shape[1])])


def _key(text: TextRows) -> str:
    rows = text.rows.detach().cpu().contiguous()
    digest = hashlib.sha256(rows.view(torch.uint8).numpy().tobytes()).hexdigest()
    return f"{digest}/{tuple(rows.shape)}/{text.padded_len}"
