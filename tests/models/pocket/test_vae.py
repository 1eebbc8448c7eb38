"""The VAE: causal, streaming equals all at once, any size."""

import pytest
import torch

from qvg_engine.errors import RequestError
from qvg_engine.models.pocket.vae import PocketVae


@pytest.fixture
def vae() -> PocketVae:
    torch.manual_seed(0)
    vae = PocketVae()
    statistics = vae.normalize
    assert statistics.running_mean is not None
    assert statistics.running_var is not None
    statistics.running_mean.normal_()
    statistics.running_var.uniform_(0.5, 2.0)
    return vae.eval()


@pytest.mark.parametrize("split", [[1, 5], [3, 3], [1, 1, 4], [2, 1, 1, 2]], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (5, 9)], ids=str)
def test_decoding_in_chunks_equals_decoding_at_once(
    vae: PocketVae, split: list[int], size: tuple[int, int]
) -> None:
    latents = torch.randn(6, 16, *size)
    whole, _ = vae.decode(latents[None])
    state, parts = None, []
    for chunk in torch.split(latents, split):
        frames, state = vae.decode(chunk[None], state)
        parts.append(frames)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    assert whole.shape == (1, 24, 3, 8 * size[0], 8 * size[1])


def test_the_state_matters_and_is_as_large_as_stated(vae: PocketVae) -> None:
    latents = torch.randn(2, 16, 8, 8)
    _, state = vae.decode_chunk(latents[:1])
    carried, _ = vae.decode_chunk(latents[1:], state)
    fresh, _ = vae.decode_chunk(latents[1:])
    assert not torch.equal(carried, fresh)
    assert sum(tensor.nbytes for tensor in state) == vae.state_bytes(8, 8)
    initial = vae.initial_state(8, 8)
    assert [tensor.shape for tensor in initial] == [tensor.shape for tensor in state]
    from_initial, _ = vae.decode_chunk(latents[1:], initial)
    assert torch.equal(from_initial, fresh)


def test_decoding_is_causal(vae: PocketVae) -> None:
    latents = torch.randn(4, 16, 8, 8)
    changed = latents.clone()
    changed[2:] += 1
    before, after = vae.decode_chunk(latents)[0], vae.decode_chunk(changed)[0]
    assert torch.equal(before[:8], after[:8])
    assert not torch.equal(before[8:], after[8:])


def test_encoding_in_chunks_equals_encoding_at_once(vae: PocketVae) -> None:
    frames = torch.randint(256, (12, 64, 40, 3), dtype=torch.uint8)
    whole, state = vae.encode_chunk(frames)
    first, state = vae.encode_chunk(frames[:4])
    rest, _ = vae.encode_chunk(frames[4:], state)
    torch.testing.assert_close(torch.cat([first, rest]), whole, atol=1e-5, rtol=0)
    assert whole.shape == (3, 16, 8, 5)


@pytest.mark.parametrize("shape", [(6, 64, 64, 3), (4, 60, 64, 3), (4, 64, 12, 3)], ids=str)
def test_wrong_sizes_are_refused(vae: PocketVae, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="give a multiple of 4 frames"):
        vae.encode_chunk(torch.zeros(shape, dtype=torch.uint8))
