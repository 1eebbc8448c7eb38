"""The payload of pages: what a commit encodes into, and attention decodes from."""

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class LayerPages:
    """The pages of one layer: K (before RoPE) and V."""

    keys: PlainPages
    values: PlainPages
