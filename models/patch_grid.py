"""How latents become tokens: whole patches, of the network's channels."""

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
