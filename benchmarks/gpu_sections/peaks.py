"""What the device can do: the bandwidth of a copy, and the rate of a large product."""

from collections.abc import Iterator

import torch

from benchmarks.gpu_sections.case import Case, Row
from benchmarks.gpu_sections.setup import Setup
from benchmarks.gpu_sections.timing import measure


class Peaks:
    """Measured at the start of a report; None until then.

    bytes_per_ms: read and written by a copy; flops_per_ms: of a product of matrices.
    """

    def __init__(self) -> None:
        self.bytes_per_ms: float | None = None
        self.flops_per_ms: float | None = None

    def cases(self, setup: Setup) -> Iterator[Case]:
        """The rows of the section; they fill this object."""
        yield Case({"what": "copy"}, lambda left: self._copy(setup, left))
        yield Case({"what": "product"}, lambda left: self._product(setup, left))

    def _copy(self, setup: Setup, left: float) -> Row:
        source = torch.zeros(setup.copy_bytes, dtype=torch.uint8, device=setup.device)
        target = torch.empty_like(source)
        timing = measure(
            lambda: target.copy_(source),
            setup.device,
            seconds=left,
            fewest_runs=setup.fewest_runs,
        )
        self.bytes_per_ms = 2 * source.nbytes / timing.ms
        return timing.row() | {"GB/s": self.bytes_per_ms / 1e6}

    def _product(self, setup: Setup, left: float) -> Row:
        size = setup.product_size
        a, b = torch.randn(2, size, size, device=setup.device, dtype=setup.dtype)
        timing = measure(lambda: a @ b, setup.device, seconds=left, fewest_runs=setup.fewest_runs)
        self.flops_per_ms = 2 * size**3 / timing.ms
        return timing.row() | {"TFLOP/s": self.flops_per_ms / 1e9}
