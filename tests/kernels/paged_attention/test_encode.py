import numpy as np
import pytest
import torch

from qvg_engine.kernels.paged_attention import PlainPages, encode, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def nan_pages(dtype: torch.dtype) -> PlainPages:
    return PlainPages(torch.full((6, 2, 64, 64), torch.nan).to(dtype))


@pytest.mark.parametrize("page_dtype", DTYPES)
@pytest.mark.parametrize("rows_dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [0, 1, 64, 150])
def test_kernels_store_the_same_bits(
    page_dtype: torch.dtype, rows_dtype: torch.dtype, num_tokens: int
) -> None:
    rows = torch.randn(num_tokens, 2, 64).to(rows_dtype)
    page_ids = np.array([4, 0, 5], dtype=np.int32)
    pages, expected = nan_pages(page_dtype), nan_pages(page_dtype)
    encode(pages, page_ids, rows)
    reference.encode(expected, page_ids, rows)
    assert torch.equal(pages.data.isnan(), expected.data.isnan())
    assert torch.equal(pages.data.nan_to_num(), expected.data.nan_to_num())


@pytest.mark.parametrize("kernel", [encode, reference.encode])
def test_rows_follow_the_order_of_the_pages(kernel: object) -> None:
    assert callable(kernel)
    rows = torch.randn(100, 2, 64)
    pages = nan_pages(torch.float32)
    kernel(pages, np.array([3, 1], dtype=np.int32), rows)
    assert torch.equal(pages.data[3], rows[:64].transpose(0, 1))
    assert torch.equal(pages.data[1, :, :36], rows[64:].transpose(0, 1))
    assert pages.data[1, :, 36:].isnan().all()
    assert pages.data[[0, 2, 4, 5]].isnan().all()


@pytest.mark.parametrize("page_ids", [[0], [0, 6], [0, -1]])
def test_pages_that_are_too_few_or_do_not_exist_are_stopped(page_ids: list[int]) -> None:
    with pytest.raises(AssertionError):
        encode(nan_pages(torch.float32), np.array(page_ids), torch.randn(65, 2, 64))
