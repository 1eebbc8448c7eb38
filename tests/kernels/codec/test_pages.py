import msgspec
import numpy as np
import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.codec import (
    CodecSpec,
    allocate_pages,
    consecutive_groups,
    consecutive_slots,
    half_split_groups,
)
from qvg_engine.kernels.rope.layout import to_half_split
from tests.kernels.codec.conftest import as_stored


@pytest.mark.parametrize("head_dim", [64, 192])
def test_allocated_bytes_are_those_of_the_spec(spec: CodecSpec, head_dim: int) -> None:
    pages = allocate_pages(
        spec,
        num_pages=5,
        num_heads=3,
        page_size=7,
        head_dim=head_dim,
        row_table=consecutive_slots(spec, 2),
        device="cpu",
    )
    books = 2 * spec.codebook_bytes(3, head_dim, spec.centroids)
    assert pages.codebooks.num_bytes == books
    assert pages.num_bytes == 5 * 3 * 7 * spec.row_bytes(head_dim) + books
    assert (pages.num_pages, pages.num_heads, pages.page_size) == (5, 3, 7)
    assert pages.head_dim == head_dim


def test_heads_of_an_odd_size_take_whole_bytes(spec: CodecSpec) -> None:
    odd = msgspec.structs.replace(spec, group=13)
    pages = allocate_pages(
        odd,
        num_pages=2,
        num_heads=1,
        page_size=3,
        head_dim=13,
        row_table=consecutive_slots(odd, 1),
        device="cpu",
    )
    books = odd.codebook_bytes(1, 13, odd.centroids)
    assert pages.num_bytes == 6 * odd.row_bytes(13) + books


def test_new_pages_refer_to_no_codebook(spec: CodecSpec) -> None:
    pages = allocate_pages(
        spec,
        num_pages=2,
        num_heads=1,
        page_size=3,
        head_dim=64,
        row_table=consecutive_slots(spec, 2),
        device="cpu",
    )
    assert (pages.slot_of_page == -1).all()
    assert (pages.codebooks.counts == 0).all()


@pytest.mark.parametrize(("head_dim", "group"), [(128, 64), (128, 16), (64, 64), (24, 4)])
def test_half_split_groups_are_consecutive_in_the_published_order(
    head_dim: int, group: int
) -> None:
    published = torch.arange(head_dim) // group
    groups = half_split_groups(head_dim, group)
    assert groups.tolist() == to_half_split(published).tolist()
    assert groups.dtype == consecutive_groups(head_dim, group).dtype == np.int32


def test_channels_of_a_group_are_in_ascending_order(spec: CodecSpec) -> None:
    pages = allocate_pages(
        spec,
        num_pages=1,
        num_heads=1,
        page_size=1,
        head_dim=128,
        row_table=consecutive_slots(spec, 1),
        device="cpu",
        channel_groups=half_split_groups(128, spec.group),
    )
    for group, channels in enumerate(pages.group_channels):
        assert channels.tolist() == np.flatnonzero(pages.channel_groups == group).tolist()


def test_heads_of_broken_groups_are_refused(spec: CodecSpec) -> None:
    with pytest.raises(ConfigError, match=f"group is {spec.group}: give a divisor"):
        allocate_pages(
            spec,
            num_pages=1,
            num_heads=1,
            page_size=1,
            head_dim=70,
            row_table=consecutive_slots(spec, 1),
            device="cpu",
        )


def test_codebooks_of_different_sizes_share_the_rows(spec: CodecSpec) -> None:
    """Slots list rows in any order, and never write into one that is not theirs."""
    sizes = [spec.stages * count + spec.channel_widths for count in (2, 4, 1)]
    order = np.random.default_rng(0).permutation(sum(sizes) + 1).astype(np.int32)
    table = np.full((3, max(sizes)), -1, dtype=np.int32)
    for slot, (size, first) in enumerate(zip(sizes, np.cumsum([0, *sizes[:-1]]), strict=True)):
        table[slot, :size] = order[first : first + size]
    pages = allocate_pages(
        spec,
        num_pages=1,
        num_heads=2,
        page_size=4,
        head_dim=64,
        row_table=table,
        num_rows=sum(sizes) + 1,
        device="cpu",
    )
    books = pages.codebooks
    books.rows.view(torch.uint8).fill_(255)
    kept = {}
    for slot, count in ((2, 1), (0, 2), (1, 4)):
        if spec.stages:
            assert books.capacity(slot) == count
        books.counts[slot] = count
        for stage in range(spec.stages):
            kept[slot, stage] = as_stored(torch.randn(2, count, 64), spec)
            books.set_stage(slot, stage, kept[slot, stage])
        if spec.channel_widths:
            kept[slot, -1] = as_stored(torch.rand(2, 64) + 0.5, spec)
            books.set_widths(slot, kept[slot, -1])
    centroids, widths = books.gather(np.array([1, 2]))
    for (slot, stage), values in kept.items():
        stored = books.widths(slot) if stage < 0 else books.stage(slot, stage)
        assert stored is not None
        assert torch.equal(stored, values)
        if slot:
            gathered = widths[slot - 1] if stage < 0 else centroids[slot - 1, :, stage]
            assert torch.equal(gathered[:, : values.shape[1]], values)
    assert (books.rows[int(order[-1])].view(torch.uint8) == 255).all()
