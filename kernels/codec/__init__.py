"""K and V in a few bits: centroids, and low-bit codes of what they leave.

`CodecSpec` says how, `PRESETS` names some; `CodedPages` is where it is kept, `Refinement` a second
code of some pages. `fit_codebook` makes centroids from rows, `encode_span` stores rows with them,
`decode` brings rows back. Knows tensors and page ids; no streams, no block tables, and not when a
codebook is worth fitting anew.
"""

from qvg_engine.kernels.codec.decode import decode
from qvg_engine.kernels.codec.encode import PendingFigures, SpanFigures, begin_encode, encode_span
from qvg_engine.kernels.codec.fit import fit_codebook
from qvg_engine.kernels.codec.pages import (
    Codebooks,
    CodedPages,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    half_split_groups,
)
from qvg_engine.kernels.codec.refinement import REFINEMENT, Refinement
from qvg_engine.kernels.codec.spec import PRESETS, CodecSpec

__all__ = [
    "PRESETS",
    "REFINEMENT",
    "Codebooks",
    "CodecSpec",
    "CodedPages",
    "PendingFigures",
    "Refinement",
    "SpanFigures",
    "allocate_pages",
    "begin_encode",
    "consecutive_groups",
    "consecutive_slots",
    "decode",
    "encode_span",
    "fit_codebook",
    "half_split_groups",
]
