from pathlib import Path

import pytest

from qvg_engine.cli.prompts import gather_prompts, video_name
from qvg_engine.errors import RequestError


def test_prompts_of_the_file_follow_those_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  a red circle \n\n# a remark\n  # another\na blue square\n")
    assert gather_prompts(["a green one"], path) == ["a green one", "a red circle", "a blue square"]


def test_a_file_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa red circle\r\na blue square\r\n")
    assert gather_prompts([], path) == ["a red circle", "a blue square"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompts"),
        (b"# nothing\n\n", "holds no prompts"),
        (b"a caf\xe9", "save it as UTF-8"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        gather_prompts([], path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(RequestError, match="cannot read --prompts-file"):
            gather_prompts(["a red circle"], path)


def test_no_prompt_and_an_empty_one_are_refused() -> None:
    with pytest.raises(RequestError, match="no prompts"):
        gather_prompts([], None)
    with pytest.raises(RequestError, match="a prompt is empty"):
        gather_prompts(["a red circle", "  "], None)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red circle", "a-red-circle-seed7.mp4"),
        ("A red   circle, moving!", "a-red-circle-moving-seed7.mp4"),
        ("../../etc/passwd", "etc-passwd-seed7.mp4"),
        ("红色的圆", "video-seed7.mp4"),
        ("x" * 300, "x" * 80 + "-seed7.mp4"),
        ("word " * 16 + "cut", "word-" * 16 + "seed7.mp4"),
        ("word " * 15 + "abcde", "word-" * 15 + "abcde-seed7.mp4"),
    ],
)
def test_names_are_plain_words_and_the_seed(prompt: str, name: str) -> None:
    assert video_name(prompt, 7) == name
