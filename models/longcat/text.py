"""The rows of a text that LongCat-Video attends to."""

from torch import Tensor

from qvg_engine.errors import RequestError
from qvg_engine.models.program import TextRows


def attended_text(text: TextRows, mask: Tensor | None, *, zero_pad: bool, name: str) -> TextRows:
    """The rows of the text itself, and how many rows are attended to.

    `mask` [L] says which of `text.rows` are of the text (not 0); the L rows are then all there
    are. With `zero_pad` padding is attended to, else only the rows of the text are. Raises
    `RequestError` for a mask of another length, or one that leaves no row; `name` is of the text.
    """
    rows, padded_len = text.rows, text.padded_len
    if mask is not None:
        rows, padded_len = _masked(rows, mask, name), len(mask)
    return TextRows(rows, padded_len if zero_pad else len(rows))


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
