import pytest

from qvg_engine.cli.sizes import format_bytes, parse_bytes, size_argument
from qvg_engine.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1", 1),
        ("4096", 4096),
        ("12B", 12),
        ("2GiB", 2 * 2**30),
        ("2gib", 2 * 2**30),
        (" 512 MiB ", 512 * 2**20),
        ("1.5KiB", 1536),
        ("3kB", 3000),
        ("2GB", 2_000_000_000),
        ("1TiB", 2**40),
        ("1024TiB", 2**50),
    ],
)
def test_sizes_are_read(text: str, num_bytes: int) -> None:
    assert parse_bytes(text, name="--kv-memory") == num_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "-2GiB",
        "2 GiBs",
        "2G",
        "two",
        "1e9",
        "nan",
        "0x10",
        "1,5GiB",
        "2.GiB",
        "9" * 5000,
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--kv-memory is '.*': give a size like 2GiB"):
        parse_bytes(text, name="--kv-memory")


@pytest.mark.parametrize("text", ["0", "0GiB", "0.1B", "1025TiB", "9" * 20])
def test_sizes_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give a size from 1 byte to 1024TiB"):
        parse_bytes(text, name="--kv-memory")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (13 * 2**20, "13.0 MiB"),
        (2**31, "2.0 GiB"),
        (3 * 2**50, "3072.0 TiB"),
    ],
)
def test_sizes_are_written_for_people(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(1, "1MiB"), (2**20, "1MiB"), (2**20 + 1, "2MiB"), (2**31, "2048MiB")]
)
def test_a_size_argument_is_read_back_as_no_less(num_bytes: int, text: str) -> None:
    assert size_argument(num_bytes) == text
    assert parse_bytes(text, name="--kv-memory") >= num_bytes
