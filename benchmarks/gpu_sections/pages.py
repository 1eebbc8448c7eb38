"""Pages of random contents, made on the device: what they hold does not matter to the time."""

import torch

from benchmarks.gpu_sections.case import NotThere
from benchmarks.gpu_sections.setup import PAGE_SIZE
from qvg_engine.block_manager.format import get_format
from qvg_engine.kernels.codec import (
    CodecSpec,
    allocate_pages,
    consecutive_slots,
    half_split_groups,
)
from qvg_engine.kernels.codec.random_pages import fill_randomly, shuffled_runs
from qvg_engine.kernels.gpu import has_triton
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.paged_attention import (
    EightBitWorkspace,
    LayerPages,
    Pages,
    PlainPages,
    Strategy,
    Workspace,
)


def make_layer(
    format_name: str, num_tokens: int, *, num_heads: int, head_dim: int, device: torch.device
) -> LayerPages:
    """K and V of one layer in pages for so many tokens, with one codebook."""
    return LayerPages(
        keys=make_pages(format_name, num_tokens, num_heads, head_dim, device, is_key=True),
        values=make_pages(format_name, num_tokens, num_heads, head_dim, device, is_key=False),
    )


def make_pages(
    format_name: str,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    device: torch.device,
    *,
    is_key: bool,
) -> Pages:
    """K or V of one layer: numbers around 0 of a magnitude of about 1."""
    num_pages = -(-num_tokens // PAGE_SIZE)
    spec = get_format(format_name).codec
    if spec is None:
        shape = (num_pages, num_heads, PAGE_SIZE, head_dim)
        return PlainPages(torch.randn(shape, device=device, dtype=torch.bfloat16))
    spec = spec.for_head_dim(head_dim)
    pages = allocate_pages(
        spec,
        num_pages=num_pages,
        num_heads=num_heads,
        page_size=PAGE_SIZE,
        head_dim=head_dim,
        row_table=consecutive_slots(spec, 1),
        device=device,
        channel_groups=half_split_groups(head_dim, spec.group) if is_key else None,
    )
    fill_randomly(pages)
    return pages


def check_offered(strategy: Strategy, layer: LayerPages) -> None:
    """Raises `NotThere` where this way to attend does not take these pages."""
    if strategy not in ("fused", "eight-bit"):
        return
    if not has_triton():
        raise NotThere("Triton is not installed")
    if strategy == "eight-bit":
        return
    from qvg_engine.kernels.paged_attention import gpu_fused

    if not gpu_fused.supports(layer):
        raise NotThere("not offered for these pages on this device")


def make_workspace(
    strategy: Strategy,
    *,
    num_heads: int,
    head_dim: int,
    max_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Workspace | EightBitWorkspace:
    """What a strategy decodes to."""
    if strategy == "eight-bit":
        return EightBitWorkspace(
            num_heads=num_heads, head_dim=head_dim, max_tokens=max_tokens, device=device
        )
    return Workspace(
        num_heads=num_heads, head_dim=head_dim, max_tokens=max_tokens, device=device, dtype=dtype
    )


def make_runs(num_tokens: int) -> PageRuns:
    """All tokens in order, in shuffled pages."""
    return shuffled_runs(num_tokens, page_size=PAGE_SIZE)


def row_bytes(format_name: str, head_dim: int) -> int:
    """Bytes of one row in pages, without codebooks."""
    return get_format(format_name).row_bytes(head_dim, compute_itemsize=2)


def codec_of(format_name: str, head_dim: int) -> CodecSpec | None:
    """How a format codes rows of this length; None if it does not."""
    spec = get_format(format_name).codec
    return None if spec is None else spec.for_head_dim(head_dim)
