"""Storing K of one chunk of one layer in pages: as it is, with a codebook, with a new codebook."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.gpu_sections.case import Case, Row
from benchmarks.gpu_sections.pages import codec_of, make_pages
from benchmarks.gpu_sections.setup import FORMATS, Setup
from benchmarks.gpu_sections.timing import measure
from qvg_engine.block_manager.codebook_policy import CodebookPolicy
from qvg_engine.kernels.codec import CodedPages, encode_span, fit_codebook
from qvg_engine.kernels.paged_attention import encode


def cases(setup: Setup) -> Iterator[Case]:
    """Every format; those with codebooks twice."""
    for heads in setup.heads:
        for name in FORMATS:
            ways = ("with it", "with a fit") if codec_of(name, setup.head_dim) else ("as it is",)
            for way in ways:
                row = {"format": name, "tokens": setup.chunk, "heads": heads, "codebook": way}
                fits = way == "with a fit"
                yield Case(row, partial(_encode, setup, name, heads, fits))


def _encode(setup: Setup, name: str, heads: int, fits: bool, left: float) -> Row:
    pages = make_pages(name, setup.chunk, heads, setup.head_dim, setup.device, is_key=True)
    rows = torch.randn(setup.chunk, heads, setup.head_dim, device=setup.device, dtype=setup.dtype)
    page_ids = np.arange(pages.num_pages)
    run: Callable[[], object]
    if isinstance(pages, CodedPages):
        stored: CodedPages = pages
        iterations = CodebookPolicy().kmeans_iterations

        def run() -> None:
            if fits:
                fit_codebook(
                    stored,
                    rows,
                    slot=0,
                    num_centroids=stored.spec.centroids,
                    seed=0,
                    warm_from=None,
                    iterations=iterations,
                )
            encode_span(stored, page_ids, rows, slot=0)
    else:
        plain = pages

        def run() -> None:
            encode(plain, page_ids, rows)

    timing = measure(run, setup.device, seconds=left, fewest_runs=setup.fewest_runs)
    return timing.row() | {"us a token": 1000 * timing.ms / setup.chunk}
