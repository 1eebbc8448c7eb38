"""The tensors that pages live in: everything preallocated, every byte counted.

One page id is valid for all layers. Which pages are in use is the page pool's business.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.block_manager.format import CacheGeometry, ElementType, PageFormat, page_bytes
from qvg_engine.errors import ConfigError
from qvg_engine.kernels.paged_attention.encode import encode
from qvg_engine.kernels.paged_attention.pages import LayerPages, PlainPages


class PageStore:
    """K and V of `num_pages` pages, per layer and per KV head.

    Args:
        geometry: layers, KV heads and head size of the model.
        page_size: tokens of a page.
        key_format, value_format: how K and V are stored.
        num_pages: pages to allocate.
        device: where they live.
        dtype: the compute dtype.

    Raises `ConfigError` for sizes that make no sense. On the CPU the system commits the memory only
    when a page is first written.
    """

    def __init__(
        self,
        *,
        geometry: CacheGeometry,
        page_size: int,
        key_format: PageFormat,
        value_format: PageFormat,
        num_pages: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        for field, value in (("page_size", page_size), ("num_pages", num_pages)):
            if value < 1:
                raise ConfigError(f"{field} must be at least 1, got {value}")
        self.geometry = geometry
        self.page_size = page_size
        self.num_pages = num_pages
        self.bytes_per_page = page_bytes(
            geometry,
            page_size=page_size,
            key_format=key_format,
            value_format=value_format,
            compute_itemsize=dtype.itemsize,
        )
        self._device = torch.device(device)
        self._dtype = dtype
        self._layers = tuple(
            LayerPages(keys=self._allocate(key_format), values=self._allocate(value_format))
            for _ in range(geometry.num_layers)
        )

    @property
    def num_bytes(self) -> int:
        """Bytes allocated, all layers together."""
        return sum(layer.keys.num_bytes + layer.values.num_bytes for layer in self._layers)

    def layer(self, layer: int) -> LayerPages:
        """The pages of one layer, for attention."""
        return self._layers[layer]

    def write(
        self, layer: int, page_ids: NDArray[np.int32], *, keys: Tensor, values: Tensor
    ) -> None:
        """Store one layer's K (before RoPE) and V of consecutive tokens.

        Args:
            layer: which layer.
            page_ids: the pages to fill, in order; the last page may stay part full.
            keys, values: [tokens, KV heads, head_dim], `tokens <= len(page_ids) * page_size`.
        """
        assert keys.shape == values.shape, (keys.shape, values.shape)
        pages = self._layers[layer]
        encode(pages.keys, page_ids, keys)
        encode(pages.values, page_ids, values)

    def _allocate(self, page_format: PageFormat) -> PlainPages:
        dtype = torch.bfloat16 if page_format.element is ElementType.BFLOAT16 else self._dtype
        heads, head_dim = self.geometry.num_kv_heads, self.geometry.head_dim
        shape = (self.num_pages, heads, self.page_size, head_dim)
        try:
            return PlainPages(torch.empty(shape, device=self._device, dtype=dtype))
        except (RuntimeError, MemoryError) as error:
            size = self.num_pages * self.bytes_per_page
            raise ConfigError(
                f"{size:,} bytes of pages cannot be allocated on {self._device}: give the "
                "KV-cache less memory"
            ) from error


def num_pages_for(
    budget_bytes: int,
    *,
    geometry: CacheGeometry,
    page_size: int,
    key_format: PageFormat,
    value_format: PageFormat,
    dtype: torch.dtype,
) -> int:
    """Pages that fit into `budget_bytes`; `ConfigError` if not even one does."""
    size = page_bytes(
        geometry,
        page_size=page_size,
        key_format=key_format,
        value_format=value_format,
        compute_itemsize=dtype.itemsize,
    )
    if budget_bytes < size:
        raise ConfigError(
            f"a page takes {size} bytes but the budget for the KV-cache is {budget_bytes}: "
            "raise it, or use a smaller page or format"
        )
    return budget_bytes // size
