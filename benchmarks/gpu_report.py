"""What the kernels and the engine do on a GPU: one command, a few minutes, no network.

    python benchmarks/gpu_report.py --output reports

checks every kernel against its reference on the device, then measures decoding against the
bandwidth of a copy, storing, steps of an engine around a randomly initialised Wan 1.3B, attention
against the best dense attention that is installed, and whole videos of eight streams, as many of
twenty chunks as there is time for. compute-sanitizer checks the kernels again where it is
installed. It writes `gpu_report.md` and `gpu_report.json`, with what was left out for want of time
or of a package.

`--minutes` sets how long it may take, `--only` which sections; `--dry-run` goes through all of it
on a CPU with tiny sizes, Triton's kernels in its interpreter. It needs torch, triton, numba and
msgspec, and this repository, installed or not. Ends with status 1 if a kernel failed or differs too
much.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

SECTIONS = ("peaks", "parity", "decode", "encode", "step", "attention", "videos", "sanitize")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("reports"), metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"argument --minutes: {options.minutes} is not positive")
    if options.dry_run:
        # Read when a module with Triton kernels is imported.
        os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import torch

    from benchmarks.gpu_sections.report import measure_report, write_report
    from benchmarks.gpu_sections.setup import dry_setup, gpu_setup

    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device: --dry-run tries the program on a CPU")
    setup = dry_setup() if options.dry_run else gpu_setup()
    with torch.no_grad():
        measured = measure_report(setup, only=options.only, minutes=options.minutes)
    write_report(measured, options.output, dry_run=options.dry_run)
    failed = [row for section in measured["sections"] for row in section["rows"] if "error" in row]
    for row in failed:
        print(f"failed: {row}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
