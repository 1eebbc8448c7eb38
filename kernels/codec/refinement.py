"""A second code of some pages: what the first one loses of their rows, in two more bits.

For pages that are read more than others, and only as long as they are: a page's own codes stay as
they are, and its refinement may be dropped at any time.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec.spec import PRESETS, CodecSpec

NO_REFINEMENT = -1
"""The refinement page of a page that has none."""

REFINEMENT: CodecSpec = msgspec.structs.replace(
    PRESETS["q2"], stages=0, centroids=1, channel_widths=False, scale_rule="spread"
)
"""How refinements are stored.

What codes leave has few outliers: a search for scales would gain 0.1 to 0.3 dB (on captures of
the embedded model; 0.9 in K of one layer) and take two and a half times as long.

They have no codebook, but use the widths of the page that they refine, where it has any: what codes
lose of a channel is nearly in proportion to its width.
"""


@dataclass(frozen=True, slots=True)
class Refinement:
    """Second codes of K or V of one layer, and which pages have one.

    codes: uint8 [refinement pages, heads, page_size, bytes], see `packing.py`.
    scales: uint8 (E4M3 bits) [refinement pages, heads, page_size, groups].
    page_of: int32 [pages], the refinement page of each page, -1 for none; on the host, read only
        here.
    spec: `REFINEMENT` for this size of heads.
    channel_groups: int32 [head_dim], which scale each channel of a row uses.
    """

    codes: Tensor
    scales: Tensor
    page_of: NDArray[np.int32]
    spec: CodecSpec
    channel_groups: NDArray[np.int32]

    @property
    def num_pages(self) -> int:
        """Refinement pages."""
        return self.codes.shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors; not of the host arrays."""
        return self.codes.nbytes + self.scales.nbytes


def allocate_refinement(
    *,
    num_pages: int,
    num_heads: int,
    page_size: int,
    page_of: NDArray[np.int32],
    channel_groups: NDArray[np.int32],
    device: torch.device | str,
) -> Refinement:
    """`num_pages` refinement pages that nothing was encoded into.

    `channel_groups` is that of the pages that they refine: groups of the refinement are made of
    theirs, in their order. Raises `ConfigError` if a row is not a whole number of groups, or its
    codes do not fill whole bytes, see `CodecSpec.for_head_dim`.
    """
    head_dim = len(channel_groups)
    spec = REFINEMENT.for_head_dim(head_dim)
    groups = np.empty(head_dim, np.int32)
    groups[np.argsort(channel_groups, kind="stable")] = np.arange(head_dim) // spec.group
    rows = (num_pages, num_heads, page_size)
    return Refinement(
        codes=torch.empty((*rows, spec.code_bytes(head_dim)), dtype=torch.uint8, device=device),
        scales=torch.empty((*rows, spec.num_groups(head_dim)), dtype=torch.uint8, device=device),
        page_of=page_of,
        spec=spec,
        channel_groups=groups,
    )
