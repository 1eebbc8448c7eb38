"""Checks that a GPU answers later: the meta device stands for one that no host can read."""

import pytest
import torch

from qvg_engine.errors import NonFiniteError
from qvg_engine.kernels.kmeans.finite import DeferredChecks, deferred_checks, require_finite


def test_checks_are_noted_and_not_raised_for_tensors_elsewhere() -> None:
    with deferred_checks() as checks:
        require_finite(torch.empty(3, 5, 2, device="meta"), "keys")
    assert checks.names == ["keys"]
    assert checks.flags[0].shape == (3,)


def test_on_the_cpu_they_are_raised_all_the_same() -> None:
    with deferred_checks() as checks, pytest.raises(NonFiniteError, match="keys"):
        require_finite(torch.full((2, 3), torch.nan), "keys")
    checks.require()


def test_only_what_lies_within_is_deferred() -> None:
    with deferred_checks() as checks:
        pass
    with pytest.raises((NonFiniteError, RuntimeError, NotImplementedError)):
        require_finite(torch.empty(3, 5, device="meta"), "keys")
    assert not checks.names


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_later_they_name_what_failed_and_its_heads(bad: float) -> None:
    checks = DeferredChecks()
    values = torch.randn(4, 5, 3)
    values[1, 2, 0] = values[3, 4, 2] = bad
    checks.add(torch.randn(2, 5, 3), "keys of layer 0")
    checks.add(values, "values of layer 7")
    with pytest.raises(NonFiniteError, match=r"values of layer 7: .* in heads 1, 3;"):
        checks.require()
    checks.require()
