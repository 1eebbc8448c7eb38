"""The payload of pages: what a commit encodes into, and attention decodes from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_engine.kernels.codec.pages import CodedPages


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
    def num_heads(self) -> int:
        return self.data.shape[1]

    @property
    def head_dim(self) -> int:
        return self.data.shape[3]

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def page_size(self) -> int:
        return self.data.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes


Pages = PlainPages | CodedPages


@dataclass(frozen=True, slots=True)
class LayerPages:
    """The pages of one layer: K (before RoPE) and V."""

    keys: Pages
    values: Pages
