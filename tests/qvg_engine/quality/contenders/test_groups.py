import pytest
import torch

from qvg_engine.errors import ConfigError
from qvg_engine.kernels.rope.layout import half_split_index
from qvg_engine.quality.contenders.groups import channel_groups, from_token_blocks, token_blocks
from tests.qvg_engine.quality.contenders.conftest import normal_rows


@pytest.mark.parametrize(("tokens", "sizes"), [(70, [32, 32, 6]), (64, [32, 32]), (5, [5])])
def test_blocks_of_tokens_and_back(tokens: int, sizes: list[int]) -> None:
    rows = normal_rows(tokens, head_dim=4)
    blocks = list(token_blocks(rows, 32))
    assert [part.shape[-1] for part in blocks for _ in range(part.shape[0])] == sizes
    assert torch.equal(blocks[-1][-1, 1, 2], rows[-sizes[-1] :, 1, 2])
    assert torch.equal(from_token_blocks(iter(blocks)), rows)


def test_groups_of_channels_are_those_of_the_published_order() -> None:
    assert channel_groups(8, 4, is_key=False).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    keys = channel_groups(8, 4, is_key=True)
    published = half_split_index(8)
    assert [sorted(published[group].tolist()) for group in keys] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_small_head_is_one_group_and_a_part_of_one_is_refused() -> None:
    assert channel_groups(16, 64, is_key=True).shape == (1, 16)
    with pytest.raises(ConfigError, match="group is 64: give a divisor of the head's 96 channels"):
        channel_groups(96, 64, is_key=False)
