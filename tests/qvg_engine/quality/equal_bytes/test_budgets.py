import msgspec
import pytest

from qvg_engine import EngineConfig
from qvg_engine.block_manager.format import get_format
from qvg_engine.errors import ConfigError
from qvg_engine.loading import load_family
from qvg_engine.quality.equal_bytes.budgets import find_budgets, stream_bytes
from qvg_engine.quality.equal_bytes.settings import EqualBytesSettings
from qvg_engine.quality.memory import VideoShape, shape_of

SETTINGS = EqualBytesSettings(windows=(6, 9), num_frames=468)


@pytest.fixture(scope="module")
def shape() -> VideoShape:
    return shape_of(load_family(EngineConfig(device="cpu")))


@pytest.mark.parametrize("name", ["q4", "q2", "q1"])
def test_the_long_window_is_the_longest_that_takes_no_more(shape: VideoShape, name: str) -> None:
    settings = msgspec.structs.replace(SETTINGS, kv_format=name)

    def num_bytes(name: str, window: int) -> int:
        return stream_bytes(shape, get_format(name), window)

    budgets = find_budgets(settings, shape)
    assert [budget.short for budget in budgets] == [6, 9]
    for budget in budgets:
        limit = num_bytes("bf16", budget.short)
        assert budget.long % 3 == 0
        assert num_bytes(name, budget.long) <= limit < num_bytes(name, budget.long + 3)


def test_bytes_of_bf16_by_hand(shape: VideoShape) -> None:
    """64 tokens a latent frame, 6 layers and 2 heads of 128 channels, K and V, 2 bytes each."""
    token = 6 * 2 * 128 * 2 * 2
    found = stream_bytes(shape, get_format("bf16"), 9)
    assert found == 9 * 64 * token


def test_windows_that_videos_do_not_fill_are_refused(shape: VideoShape) -> None:
    (budget,) = find_budgets(msgspec.structs.replace(SETTINGS, windows=(6,)), shape)
    # The last chunk of a video is not stored, so there is one more than the window holds.
    enough = 4 * (budget.long + 3)
    whole = msgspec.structs.replace(SETTINGS, windows=(6,), num_frames=enough)
    assert find_budgets(whole, shape) == (budget,)
    short = msgspec.structs.replace(whole, num_frames=enough - 12)
    with pytest.raises(ConfigError, match=f"num_frames is {enough - 12}.* fill {budget.long}"):
        find_budgets(short, shape)


@pytest.mark.parametrize("window", [3, 7, 1002])
def test_windows_are_whole_chunks_with_a_history(shape: VideoShape, window: int) -> None:
    with pytest.raises(ConfigError, match=f"windows has {window}"):
        find_budgets(msgspec.structs.replace(SETTINGS, windows=(window,)), shape)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("windows", ()),
        ("windows", (6, 6)),
        ("kv_format", "bf16"),
        ("kv_format", "q3"),
        ("num_prompts", 0),
        ("num_frames", 95),
        ("dtype", "float16"),
    ],
)
def test_settings_name_what_is_wrong(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        EqualBytesSettings(**{field: value})  # type: ignore[arg-type]
