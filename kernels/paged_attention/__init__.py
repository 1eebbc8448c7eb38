"""Attention over keys and values that live in pages.

`paged_attention` takes the queries of one pass, the segments that they see and a read transform,
`batched_attention` those of all passes of a step; `Workspace` is where pages are decoded to. Knows
tensors and page ids; no streams, no block tables.
"""

from qvg_engine.kernels.page_runs import PageColumns, PageRuns
from qvg_engine.kernels.paged_attention.attention import (
    AttentionResult,
    Strategy,
    batched_attention,
    paged_attention,
    paged_attention_with_lse,
)
from qvg_engine.kernels.paged_attention.decode import decode, place
from qvg_engine.kernels.paged_attention.eight_bit import EightBitWorkspace, value_dtype_for
from qvg_engine.kernels.paged_attention.encode import encode
from qvg_engine.kernels.paged_attention.pages import LayerPages, Pages, PlainPages
from qvg_engine.kernels.paged_attention.passes import AttentionPass
from qvg_engine.kernels.paged_attention.segments import (
    DenseSegment,
    PagedSegment,
    Segment,
)
from qvg_engine.kernels.paged_attention.transform import (
    IdentityTransform,
    ReadTransform,
    RopeTransform,
    rotates_only,
)
from qvg_engine.kernels.paged_attention.transform_set import TransformSet, transforms_in
from qvg_engine.kernels.paged_attention.workspace import Workspace

__all__ = [
    "AttentionPass",
    "AttentionResult",
    "DenseSegment",
    "EightBitWorkspace",
    "IdentityTransform",
    "LayerPages",
    "PageColumns",
    "PageRuns",
    "PagedSegment",
    "Pages",
    "PlainPages",
    "ReadTransform",
    "RopeTransform",
    "Segment",
    "Strategy",
    "TransformSet",
    "Workspace",
    "batched_attention",
    "decode",
    "encode",
    "paged_attention",
    "paged_attention_with_lse",
    "place",
    "rotates_only",
    "transforms_in",
    "value_dtype_for",
]
