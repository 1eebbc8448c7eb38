import re

import pytest

from qvg_engine.quality.figures import (
    BenchReport,
    BookErrors,
    FormatErrors,
    FramePsnr,
    MemoryCurve,
    margins,
)
from qvg_engine.quality.markdown import to_markdown
from qvg_engine.quality.plots import draw_plots
from qvg_engine.quality.sheets import make_sheets
from qvg_engine.quality.text_plot import Point, error_points, text_plot


def make_errors(name: str, error: float, centroids: int = 64) -> FormatErrors:
    return FormatErrors(
        name=name,
        centroids=centroids,
        bits=2.25,
        codebook_bits=0.25,
        key_error=error,
        value_error=error,
        attention_error=error,
        key_smoothing_gain=6.5 if centroids else None,
        value_smoothing_gain=2.5 if centroids else None,
        books=(
            BookErrors(
                video=0,
                layer=0,
                key_error=error,
                value_error=error,
                attention_error=error,
                key_error_unsmoothed=None,
                value_error_unsmoothed=None,
            ),
        ),
    )


def make_report(q2: float = 0.001) -> BenchReport:
    errors = (make_errors("rtn2", 0.3, 0), make_errors("qvg", 0.01), make_errors("q2", q2))
    psnr = tuple(
        FramePsnr(
            name="q2",
            own_budget=own,
            centroids=64,
            codebook_rows=65,
            chunks=(40.0, None, 30.0),
            videos=((39.0, None, 30.0), (41.0, None, 30.0)),
        )
        for own in (True, False)
    )
    memory = tuple(
        MemoryCurve(
            model="pocket",
            name=name,
            window_frames=window,
            seconds=(10.0, 60.0, 600.0),
            page_bytes=(2**20, 2**21, 2**22 * scale),
            codebook_bytes=(0, 0, 0),
        )
        for name, scale in (("bf16", 8), ("q2", 1))
        for window in (18, None)
    )
    return BenchReport(
        version="0",
        model="pocket",
        prompts=("a", "b"),
        seed=0,
        num_frames=48,
        captured_tokens=1536,
        layers=(0,),
        fit_on="all",
        errors=errors,
        margins=margins(errors),
        psnr=psnr,
        memory=memory,
    )


def test_sheets_say_what_was_measured() -> None:
    sheets = {sheet.title: sheet for sheet in make_sheets(make_report())}
    errors = sheets["Errors of K and V, 64 centroids a stage"]
    assert [row[0] for row in errors.rows] == ["q2", "qvg", "rtn2"], "the best one first"
    assert errors.rows[0][5] == "-30.0"
    assert errors.rows[0][8:] == ("6.5x", "2.5x")
    assert "6.9x for K and 2.6x for V" in errors.note
    frames = sheets["PSNR of frames against bf16 pages, dB, 2 videos"]
    assert frames.rows[0] == ("q2", "64, by default", "40.0 ± 1.0", "equal", "30.0 ± 0.0")
    memory = sheets["KV-cache of one stream, MiB, pocket"]
    assert memory.rows[-1] == ("q2", "everything", "1.0", "2.0", "4.0", "1/8.00")


def test_every_sheet_is_a_whole_table() -> None:
    for sheet in make_sheets(make_report()):
        assert all(len(row) == len(sheet.headings) for row in sheet.rows)


def test_markdown_has_every_table_and_image() -> None:
    text = to_markdown(make_report(), images=["psnr.png"])
    assert "![psnr.png](psnr.png)" in text
    for sheet in make_sheets(make_report()):
        assert f"## {sheet.title}" in text
    widths = {line.count("|") for line in text.splitlines() if "error of K" in line}
    assert widths == {11}


@pytest.mark.parametrize(("kept", "word"), [(0.01 / 4, "met"), (0.01 / 3.9, "NOT met")])
def test_the_bar_of_six_decibels(kept: float, word: str) -> None:
    sheets = make_sheets(make_report(q2=kept))
    (sheet,) = [sheet for sheet in sheets if sheet.title.startswith("q2 against")]
    assert sheet.note.endswith(f": {word}.")


def test_text_plot_places_points() -> None:
    points = [
        Point(label="low", x=1, y=0.001),
        Point(label="high", x=3, y=1),
        Point(label="between", x=2, y=0.0316228),
    ]
    lines = text_plot(points, x_name="bits", y_name="error").splitlines()
    rows = {
        letter: i for i, line in enumerate(lines) for letter in re.findall(r"\|.*([ABC])", line)
    }
    assert rows["B"] < rows["C"] < rows["A"]
    columns = {letter: lines[row].index(letter) for letter, row in rows.items()}
    assert columns["A"] < columns["C"] < columns["B"]
    assert "A  low: 0.001 at 1.00" in "\n".join(lines)


def test_text_plot_of_one_point_and_of_none() -> None:
    assert "A  only" in text_plot([Point(label="only", x=1, y=1)], x_name="x", y_name="y")
    assert text_plot([], x_name="x", y_name="y") == "y against x: no points"


def test_points_are_formats_with_their_codebooks() -> None:
    points = error_points([make_errors("qvg", 0.01), make_errors("dense", 0.0, 0)])
    assert points == [Point(label="qvg, 64 centroids", x=2.5, y=0.01)]


def test_plots_are_png_files_of_some_size() -> None:
    pytest.importorskip("matplotlib")
    plots = draw_plots(make_report())
    assert set(plots) == {"error_bits.png", "psnr.png", "memory.png"}
    for content in plots.values():
        assert content.startswith(b"\x89PNG")
        assert 5_000 < len(content) < 200_000
