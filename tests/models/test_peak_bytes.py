"""Bytes that are held at the widest."""

import pytest
import torch

from qvg_engine.models.peak_bytes import PeakBytes


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_is_freed_does_not_count(device: str) -> None:
    given = torch.zeros(1000, device=device)
    with PeakBytes() as counted:
        first = given + 1
        second = first * 2
        del first
        third = second - 1
        del second
    assert counted.most == 8000
    assert third.nbytes == 4000


def test_views_count_once_and_only_if_made_inside() -> None:
    given = torch.zeros(10, 100)
    with PeakBytes() as counted:
        view = given.T[:50]
        assert counted.most == 0
        made = torch.ones(10, 100)
        halves = made.split(5)
        del made
        kept = torch.ones(10)
    assert counted.most == 4000 + 40
    assert len(halves) + len(view) + len(kept) > 0


def test_in_place_takes_nothing() -> None:
    with PeakBytes() as counted:
        made = torch.ones(100)
        made.mul_(2).add_(1)
    assert counted.most == 400
