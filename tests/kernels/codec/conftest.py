"""Pages full of rubbish, codebooks of random numbers, and rows of many kinds."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvg_engine.kernels.codec import (
    PRESETS,
    CodecSpec,
    CodedPages,
    allocate_pages,
    consecutive_slots,
    decode,
    reference,
)
from qvg_engine.kernels.codec.e4m3 import from_e4m3, to_e4m3
from qvg_engine.kernels.page_runs import PageRuns
from qvg_engine.kernels.rope import RopeGrid

SPECS: dict[str, CodecSpec] = {
    **{name: msgspec.structs.replace(spec, centroids=9) for name, spec in PRESETS.items()},
    "no stages": msgspec.structs.replace(PRESETS["q2"], stages=0),
    **{
        f"trellis {bits}": msgspec.structs.replace(
            PRESETS["q2"],
            centroids=9,
            bits=bits,
            trellis=True,
            levels=tuple((k - 2**bits + 0.5) / 2 for k in range(2 ** (bits + 1))),
        )
        for bits in (1, 2, 4)
    },
    "trellis, absmax": msgspec.structs.replace(
        PRESETS["qvg"],
        centroids=9,
        group=4,
        trellis=True,
        levels=(-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0),
    ),
    "trellis, no stages": msgspec.structs.replace(
        PRESETS["q1"], stages=0, trellis=True, levels=(-1.5, -0.5, 0.5, 1.5)
    ),
    **{
        f"plain {bits}": msgspec.structs.replace(
            PRESETS["q2"],
            centroids=9,
            bits=bits,
            trellis=False,
            levels=tuple(k / 2 + k * k / 40 - 2.5 for k in range(2**bits)),
        )
        for bits in (1, 2, 4)
    },
    "spread": msgspec.structs.replace(PRESETS["q2"], scale_rule="spread"),
    "spread, no trellis": msgspec.structs.replace(PRESETS["qvg"], scale_rule="spread"),
    "wide centroids": msgspec.structs.replace(PRESETS["q1"], centroid_type="float16"),
    # Nothing but the sizes is that of a preset; no channel has a level at zero, or of few bits.
    "odd": CodecSpec(
        stages=3,
        centroids=5,
        bits=4,
        levels=(-1.7, -0.3, 0.2, 0.9, 2.1),
        group=4,
        scale_rule="searched",
        scale_type="float16",
        channel_widths=True,
        centroid_type="float32",
    ),
}


def _huge_channel(shape: tuple[int, ...]) -> Tensor:
    rows = torch.randn(shape)
    rows[..., 3] *= 1e5
    return rows


def _sparse(shape: tuple[int, ...]) -> Tensor:
    """Most groups are zero, some hold one number."""
    return torch.randn(shape) * (torch.rand(shape) < 0.02)


KINDS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "normal": torch.randn,
    "halves": lambda shape: torch.randint(-6, 7, shape) / 2,
    "huge channel": _huge_channel,
    "sparse": _sparse,
    "constant": lambda shape: torch.full(shape, 3.7),
    "zero": torch.zeros,
    "1e-6": lambda shape: 1e-6 * torch.randn(shape),
    "1e6": lambda shape: 1e6 * torch.randn(shape),
    "1e37": lambda shape: 1e37 * torch.randn(shape),
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> CodecSpec:
    return SPECS[request.param]


@pytest.fixture
def all_specs() -> dict[str, CodecSpec]:
    return SPECS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_rows() -> Callable[..., Tensor]:
    """Rows of a kind: fp32 [tokens, heads, head_dim]."""

    def make(kind: str, *shape: int) -> Tensor:
        return KINDS[kind](shape)

    return make


@pytest.fixture
def make_pages() -> Callable[..., CodedPages]:
    """Pages in which every bit is set, with `books` codebooks of random numbers in their slots."""

    def make(
        spec: CodecSpec,
        *,
        num_pages: int = 6,
        num_heads: int = 2,
        page_size: int = 16,
        head_dim: int = 64,
        num_slots: int = 3,
        books: int = 3,
        channel_groups: NDArray[np.int32] | None = None,
        refinement_pages: int = 0,
    ) -> CodedPages:
        pages = allocate_pages(
            spec,
            num_pages=num_pages,
            num_heads=num_heads,
            page_size=page_size,
            head_dim=head_dim,
            row_table=consecutive_slots(spec, num_slots),
            device="cpu",
            channel_groups=channel_groups,
            refinement_pages=refinement_pages,
        )
        for x in (pages.codes, pages.ids, pages.scales):
            x.view(torch.uint8).fill_(255)
        if pages.refinement is not None:
            pages.refinement.codes.fill_(255)
            pages.refinement.scales.fill_(255)
        # In E4M3, too, this is NaN.
        pages.codebooks.rows.view(torch.uint8).fill_(255)
        for slot in range(books):
            # Not all of the centroids exist.
            pages.codebooks.counts[slot] = spec.centroids - slot
            for stage in range(spec.stages):
                shape = pages.codebooks.stage(slot, stage).shape
                pages.codebooks.set_stage(slot, stage, torch.randn(shape) / (stage + 1))
        for slot in range(books if spec.channel_widths else 0):
            pages.codebooks.set_widths(slot, torch.rand(num_heads, head_dim) + 0.2)
        return pages

    return make


def as_stored(numbers: Tensor, spec: CodecSpec) -> Tensor:
    """fp32 numbers as centroids, and so widths, are read back."""
    if spec.centroid_type == "e4m3":
        return from_e4m3(to_e4m3(numbers))
    return numbers.to(getattr(torch, spec.centroid_type)).float()


def decoded(pages: CodedPages, page_ids: list[int], num_tokens: int) -> Tensor:
    """The first tokens of some pages, fp32 [tokens, heads, head_dim]."""
    ids = np.array(page_ids)
    runs = PageRuns(ids, 0 * ids, 0 * ids, 0 * ids + pages.page_size).cut(0, num_tokens)
    out = torch.full((pages.num_heads, num_tokens, pages.head_dim), torch.nan)
    decode(pages, runs, out, start=0, rope=None)
    return out.transpose(0, 1)


def check_decode_bits(
    pages: CodedPages, runs: PageRuns, *, dtype: torch.dtype, rope: RopeGrid | None
) -> None:
    """Kernel and reference write the same bits, and nothing around them; 2 heads of 64."""
    count = runs.num_tokens
    out, expected = torch.full((2, 2, count + 9, 64), torch.nan).to(dtype)
    decode(pages, runs, out, start=4, rope=rope)
    reference.decode(pages, runs, expected, start=4, rope=rope)
    assert out[:, 4 : 4 + count].isfinite().all()
    assert torch.equal(out[:, 4 : 4 + count], expected[:, 4 : 4 + count])
    assert out[:, :4].isnan().all()
    assert out[:, 4 + count :].isnan().all()
