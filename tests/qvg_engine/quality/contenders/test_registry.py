import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.quality.comparison import QUALITY_FORMATS
from qvg_engine.quality.contenders import CONTENDERS, contender
from qvg_engine.quality.format_errors import squared_error
from tests.qvg_engine.quality.contenders.conftest import clustered_rows, normal_rows

# 70 tokens are no multiple of a page, or of any group of tokens.
TOKENS = 70
PARTS = pytest.mark.parametrize("is_key", [False, True], ids=["values", "keys"])
ALL = pytest.mark.parametrize("name", CONTENDERS)


def test_every_page_format_is_a_contender_under_its_name() -> None:
    assert set(QUALITY_FORMATS) <= set(CONTENDERS)
    assert all(item.name == name for name, item in CONTENDERS.items())


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    assert contender("kivi2").name == "kivi2"
    with pytest.raises(ConfigError, match=r"'int3': use one of .*q2.*quarot4.*ternary"):
        contender("int3")


@ALL
@PARTS
def test_a_round_trip_is_finite_repeatable_and_new(name: str, is_key: bool) -> None:
    rows = clustered_rows(TOKENS, clusters=5)
    given = rows.clone()
    first = CONTENDERS[name].round_trip(rows, is_key=is_key, seed=7, centroids=4)
    second = CONTENDERS[name].round_trip(rows, is_key=is_key, seed=7, centroids=4)
    assert first.rows.shape == rows.shape
    assert first.rows.dtype == torch.float32
    assert first.rows.isfinite().all()
    assert torch.equal(first.rows, second.rows)
    assert (first.bits, first.shared_bits) == (second.bits, second.shared_bits)
    assert first.total_bits == first.bits + first.shared_bits
    assert torch.equal(rows, given)
    assert first.rows.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()


@ALL
def test_zeros_stay_zeros(name: str) -> None:
    rows = torch.zeros(TOKENS, 2, 128)
    found = CONTENDERS[name].round_trip(rows, is_key=True, seed=0, centroids=4)
    assert not found.rows.any()


@pytest.mark.parametrize(
    ("name", "limit"),
    [("qvg", 1e-5), ("q2", 1e-4), ("q2-fp16-centroids", 1e-7), ("four-aware-refit", 1e-7),
     ("ternary-2stages", 1e-7), ("signs-2stages-channels64", 1e-7),
     ("four-fp8-centroids", 1e-4), ("kivi2", 1e-7)],
)  # fmt: skip
def test_a_row_that_never_changes_is_kept(name: str, limit: float) -> None:
    rows = normal_rows(1).expand(TOKENS, 2, 128).clone()
    found = CONTENDERS[name].round_trip(rows, is_key=True, seed=0, centroids=4).rows
    assert squared_error(found, rows) < limit
    assert torch.equal(found, found[:1].expand_as(found))


@pytest.mark.parametrize(
    "name",
    ["four", "signs-2stages", "q2", "four-aware", "q1-refit", "four-int8-centroids", "ternary"],
)
def test_the_seed_decides_the_centroids(name: str) -> None:
    rows = normal_rows(TOKENS)
    first, second = (
        CONTENDERS[name].round_trip(rows, is_key=False, seed=seed, centroids=4).rows
        for seed in (0, 1)
    )
    assert not torch.equal(first, second)
