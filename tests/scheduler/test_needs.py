import pytest

from qvg_engine.scheduler.needs import Needs


def test_addition_and_subtraction_are_inverse() -> None:
    first = Needs(pages=5, decoder_slots=1, text_rows=30)
    second = Needs(pages=7, decoder_slots=0, text_rows=2)
    assert first + second == Needs(pages=12, decoder_slots=1, text_rows=32)
    assert (first + second) - second == first


@pytest.mark.parametrize("name", ["pages", "decoder_slots", "text_rows"])
def test_fits_looks_at_every_resource(name: str) -> None:
    capacity = Needs(pages=4, decoder_slots=4, text_rows=4)
    assert capacity.fits(capacity)
    assert Needs(**{name: 4}).fits(capacity)
    assert not Needs(**{name: 5}).fits(capacity)


def test_shortfall_names_only_what_is_lacking() -> None:
    capacity = Needs(pages=600, decoder_slots=1, text_rows=100)
    needs = Needs(pages=1_900, decoder_slots=2, text_rows=100)
    assert needs.shortfall(capacity) == "1,900 pages of 600, 2 decoder slots of 1"
    assert Needs(decoder_slots=1).shortfall(Needs()) == "1 decoder slot of 0"
    assert capacity.shortfall(capacity) == ""


def test_text_form_is_for_people() -> None:
    needs = Needs(pages=1_000, decoder_slots=1, text_rows=0)
    assert str(needs) == "1,000 pages, 1 decoder slot"
    assert str(Needs()) == "nothing"


def test_nothing_is_negative() -> None:
    with pytest.raises(AssertionError, match="pages must be >= 0: -1"):
        Needs(pages=1) - Needs(pages=2)
