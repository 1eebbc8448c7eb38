"""The payload of pages: what attention reads, and what a commit writes."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PlainPages:
    """K or V of one layer, stored element by element.

    data: [pages, heads, page_size, head_dim], contiguous.
    """

    data: Tensor

    @property
    def num_pages(self) -> int:
        return self.data.shape[0]

    @property
    def page_size(self) -> int:
        return self.data.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes

    def write(self, page_ids: NDArray[np.int32], rows: Tensor) -> None:
        """Store rows [tokens, heads, head_dim] in order into the pages `page_ids`.

        The last page may stay part full, and pages beyond the rows untouched; slots that get no row
        keep what they held.
        """
        num_tokens, num_heads, head_dim = rows.shape
        num_full, rest = divmod(num_tokens, self.page_size)
        assert num_tokens <= len(page_ids) * self.page_size, (num_tokens, page_ids)
        ids = torch.from_numpy(page_ids[:num_full].astype(np.int64)).to(self.data.device)
        full = rows[: num_tokens - rest].reshape(num_full, self.page_size, num_heads, head_dim)
        self.data[ids] = full.transpose(1, 2).to(self.data.dtype)
        if rest:
            self.data[int(page_ids[num_full]), :, :rest] = rows[num_tokens - rest :].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class LayerPages:
    """The pages of one layer: K (before RoPE) and V."""

    keys: PlainPages
    values: PlainPages
