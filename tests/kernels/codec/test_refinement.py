"""Where refinements are kept."""

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import (
    PRESETS,
    REFINEMENT,
    CodecSpec,
    CodedPages,
    Refinement,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    half_split_groups,
)


def allocate(
    spec: CodecSpec, head_dim: int, *, refinement_pages: int = 1, **changes: Any
) -> CodedPages:
    return allocate_pages(
        spec,
        num_pages=2,
        num_heads=1,
        page_size=4,
        head_dim=head_dim,
        row_table=consecutive_slots(spec, 1),
        device="cpu",
        refinement_pages=refinement_pages,
        **changes,
    )


def refinement_of(pages: CodedPages) -> Refinement:
    assert pages.refinement is not None
    return pages.refinement


@pytest.mark.parametrize(("head_dim", "row_bytes"), [(128, 34), (64, 17), (24, 7)])
def test_bytes_are_those_of_the_spec(head_dim: int, row_bytes: int) -> None:
    """Two bits an element, and a scale for 64 channels, or for a smaller head."""
    spec = PRESETS["q4"].for_head_dim(head_dim)
    pages, without = (allocate(spec, head_dim, refinement_pages=count) for count in (3, 0))
    assert refinement_of(pages).num_bytes == 3 * 4 * row_bytes
    assert pages.num_bytes - without.num_bytes == 3 * 4 * row_bytes
    assert REFINEMENT.for_head_dim(head_dim).row_bytes(head_dim) == row_bytes
    assert refinement_of(pages).page_of.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("head_dim", "group"), [(128, 64), (128, 16), (192, 32), (64, 64), (24, 8), (24, 24)]
)
def test_groups_are_made_of_those_of_the_pages(head_dim: int, group: int) -> None:
    spec = msgspec.structs.replace(PRESETS["q2"], group=group)
    own = REFINEMENT.for_head_dim(head_dim).group
    for groups in (half_split_groups, consecutive_groups):
        pages = allocate(spec, head_dim, channel_groups=groups(head_dim, group))
        expected = groups(head_dim, own)
        assert refinement_of(pages).channel_groups.tolist() == expected.tolist()


def test_groups_of_pages_that_are_larger_are_cut() -> None:
    pages = allocate(msgspec.structs.replace(PRESETS["q2"], group=128), 128)
    assert refinement_of(pages).channel_groups.tolist() == consecutive_groups(128, 64).tolist()


@pytest.mark.parametrize(
    ("head_dim", "message"),
    [
        (80, "group is 64: give a divisor of the head's 80 channels"),
        (14, "14 codes of 2 bits must fill whole bytes"),
    ],
)
def test_heads_that_cannot_be_refined_are_refused(head_dim: int, message: str) -> None:
    spec = msgspec.structs.replace(PRESETS["qvg"], group=2)
    assert allocate(spec, head_dim, refinement_pages=0).refinement is None
    with pytest.raises(ConfigError, match=message):
        allocate(spec, head_dim)


def test_the_array_of_refined_pages_is_the_one_that_was_given() -> None:
    page_of = np.array([-1, 0], np.int32)
    assert refinement_of(allocate(PRESETS["q2"], 64, refined_page_of=page_of)).page_of is page_of


@pytest.mark.parametrize(
    "page_of", [np.zeros(3, np.int32), np.zeros(2, np.int64), np.zeros((2, 1), np.int32)]
)
def test_arrays_of_another_kind_are_stopped(page_of: NDArray[Any]) -> None:
    with pytest.raises(AssertionError):
        allocate(PRESETS["q2"], 64, refined_page_of=page_of)


def test_an_array_without_refinement_pages_is_stopped() -> None:
    page_of = np.full(2, -1, np.int32)
    with pytest.raises(AssertionError, match="no refinement pages"):
        allocate(PRESETS["q2"], 64, refinement_pages=0, refined_page_of=page_of)
