"""The rows of a text that LongCat-Video attends to."""

from collections.abc import Callable

import torch
from torch import Tensor

from qvg_engine.errors import RequestError
from qvg_engine.models.program import TextRows


class EmbeddedText:
    """A text behind the network's text MLP, computed when it is first asked for.

    With `zero_pad` padding is attended to: rows that are zero behind the MLP. Since the engine
    pads with zero rows, those are what it appends; it keeps many of them as one with a weight.
    Without, only the rows of the text are left.
    """

    def __init__(
        self,
        text: TextRows,
        mask: Tensor | None,
        *,
        zero_pad: bool,
        embed: Callable[[Tensor], Tensor],
        name: str = "prompt",
    ) -> None:
        """Raises `RequestError` for a mask of another length, or one that leaves no row."""
        self._rows = text.rows
        padded_len = text.padded_len
        if mask is not None:
            self._rows = _masked(text.rows, mask, name)
            padded_len = len(mask)
        self.padded_len = padded_len if zero_pad else len(self._rows)
        self._embed = embed
        self._embedded: TextRows | None = None

    def rows(self) -> TextRows:
        """The rows [L, hidden_size]; the same object at every call."""
        if self._embedded is None:
            with torch.no_grad():
                self._embedded = TextRows(self._embed(self._rows), self.padded_len)
        return self._embedded


def _masked(rows: Tensor, mask: Tensor, name: str) -> Tensor:
    if tuple(mask.shape) != (len(rows),):
        raise RequestError(
            f"the mask of the {name} is {list(mask.shape)}: give [{len(rows)}], one value for each "
            "row of its embeddings"
        )
    kept = mask.to(rows.device) != 0
    if not bool(kept.any()):
        raise RequestError(f"the mask of the {name} leaves no row: give one that keeps its text")
    return rows[kept]
