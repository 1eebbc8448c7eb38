"""How latents become tokens: whole patches, of the network's channels."""

from torch import Tensor

from qvg_engine.errors import RequestError


def patch_grid(height: int, width: int, patch_size: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of tokens of a latent frame; `RequestError` if patches do not fit."""
    _, p, q = patch_size
    if height % p or width % q:
        raise RequestError(
            f"a latent frame of {height}x{width} does not divide into patches of {p}x{q}: "
            "give multiples of the patch size"
        )
    return height // p, width // q


def check_channels(given: int, taken: int) -> None:
    """`RequestError` for latents of another number of channels than the network takes."""
    if given != taken:
        raise RequestError(f"the latents have {given} channels: this network takes {taken}")


def to_patches(latents: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Latents [F, C, height, width] -> [F * tokens per frame, C * samples of a patch]."""
    _, p, q = patch_size
    frames, channels, height, width = latents.shape
    patches = latents.reshape(frames, channels, height // p, p, width // q, q)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * p * q)


def from_patches(
    tokens: Tensor, height: int, width: int, *, channels: int, patch_size: tuple[int, int, int]
) -> Tensor:
    """Tokens of whole frames [T, samples of a patch * channels] -> [F, channels, height, width]."""
    _, p, q = patch_size
    patches = tokens.reshape(-1, height // p, width // q, p, q, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)
