import pytest
import torch

from qvg_engine.block_manager.format import get_format
from qvg_engine.quality.attention_mass import OFFSETS, LayerMass, gain, measure_mass
from qvg_engine.quality.capture import Capture, CaptureInfo, LayerCapture
from qvg_engine.quality.comparison import quality_format
from qvg_engine.quality.stored import store_rows
from qvg_engine.quality.teacher_forced import TeacherForced
from tests.qvg_engine.quality.conftest import drawn_capture

CACHED, OWN, SPREAD = 2000, 400, 0.6


def capture_of(keys: torch.Tensor) -> Capture:
    """A capture without RoPE, [tokens, 2, 32], whose last `OWN` tokens are a chunk.

    Their values lie apart from the others', so that a shift of attention shows.
    """
    generator = torch.Generator().manual_seed(1)
    info = CaptureInfo(
        model="drawn", prompt="", seed=0, window_tokens=None, sink_tokens=0, grid=None
    )
    drawn = torch.randn(2, len(keys), 2, 32, generator=generator)
    drawn[1, CACHED:] += 3
    layer = LayerCapture(queries=drawn[0], keys=keys, values=drawn[1])
    return Capture(info=info, chunk_tokens=(CACHED, OWN), layers={0: layer})


def measured(name: str) -> LayerMass:
    """Keys that are read with noise ("qvg"), or without what was noise in them ("q2")."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, CACHED + OWN, 2, 32, generator=generator)
    noise = SPREAD * noise
    keys, read = (clean + noise, clean) if name == "q2" else (clean, clean + noise)
    capture = capture_of(keys)
    rows = capture.layers[0]
    forced = TeacherForced(capture, 0, (1,))
    return measure_mass(
        forced,
        get_format(name),
        exact=(rows.keys, rows.values),
        read=(read, rows.values),
        layer=0,
    )


@pytest.mark.parametrize(("name", "sign"), [("q2", -1), ("qvg", 1)])
def test_the_shift_is_what_the_formula_predicts(name: str, sign: int) -> None:
    found = measured(name)
    for head in found.heads:
        expected = sign * SPREAD**2 / 2
        assert head.formula == pytest.approx(expected, rel=0.15)
        assert head.mean == pytest.approx(head.formula, rel=0.15)
        assert head.energy == pytest.approx(head.formula, rel=0.2)
        assert head.correlation * sign > 0.3
    assert gain(found.errors, "formula") > 0.3
    assert gain(found.errors, "energy") > 0.3
    assert gain(found.errors, "none") == 0


def test_no_offset_is_better_than_the_best() -> None:
    capture = drawn_capture(heads=4)
    rows, page_format = capture.layers[0], quality_format("rtn2")
    keys = store_rows(rows.keys, page_format, is_key=True, seed=0).decoded()
    values = store_rows(rows.values, page_format, is_key=False, seed=0).decoded()
    forced = TeacherForced(capture, 0, (1, 2))
    found = measure_mass(
        forced, page_format, exact=(rows.keys, rows.values), read=(keys, values), layer=7
    )
    assert [(head.layer, head.head) for head in found.heads] == [(7, x) for x in range(4)]
    assert found.errors["none"] == pytest.approx(forced.error(keys, values))
    assert found.errors["best"] == min(found.errors.values())
    assert 0 < found.errors["best"] < found.errors["none"]
    assert set(found.errors) == set(OFFSETS)


def test_exact_rows_have_no_shift() -> None:
    capture = drawn_capture()
    rows = capture.layers[0]
    exact = (rows.keys, rows.values)
    found = measure_mass(
        TeacherForced(capture, 0, (1, 2)), get_format("q2"), exact=exact, read=exact, layer=0
    )
    for head in found.heads:
        assert head.mean == head.spread == head.formula == head.energy == head.correlation == 0
    assert max(found.errors.values()) < 1e-6
