"""Projective position encoding: attention between the cameras of tokens.

Li et al., "Cameras as Relative Positional Encoding" (arXiv 2507.10496). P = lift(K) W is the
projection of the camera of a token's frame, K its intrinsics and W world-to-camera. On every run
of four channels of a head q becomes P^T q, k and v P^-1 k and P^-1 v, and the output P out, so that
scores and results depend on pairs of cameras and not on where the world's origin is.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RUN = 4
"""Channels that one 4x4 matrix multiplies."""


def projections(world_to_camera: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """P and P^-1, fp32 [F, 4, 4], of cameras [F, 4, 4] with intrinsics [F, 3, 3].

    The focal lengths alone are used, in units of the image's size: the centre is left out, as in
    the original. P^-1 is formed from the transposed rotation, so a camera must be rigid.
    """
    world = world_to_camera.float()
    focal = intrinsics.float().diagonal(dim1=-2, dim2=-1)[:, :2]
    scales = torch.ones(len(world), RUN, device=world.device)
    scales[:, :2] = focal
    inverse_rotation = world[:, :3, :3].mT
    camera_to_world = torch.zeros_like(world)
    camera_to_world[:, :3, :3] = inverse_rotation
    camera_to_world[:, :3, 3:] = -inverse_rotation @ world[:, :3, 3:]
    camera_to_world[:, 3, 3] = 1
    return scales[:, :, None] * world, camera_to_world / scales[:, None, :]


@dataclass(frozen=True, slots=True, eq=False)
class ProjectiveTransform:
    """The read transform of the encoding, by token number.

    Args:
        projection: P of the frames, fp32 [F, 4, 4]; frame i has the tokens from number
            i * tokens_per_frame on.
        inverse: P^-1, the same.
        tokens_per_frame: tokens of a latent frame.

    Queries and keys are in half-split channel order, values and output in the published one; runs
    of four are those of the published order. Arithmetic is in fp32, rounded once.
    """

    projection: Tensor
    inverse: Tensor
    tokens_per_frame: int

    @property
    def rope(self) -> None:
        return None

    def queries(self, queries: Tensor, positions: NDArray[np.int64]) -> Tensor:
        # Row vectors: x @ P is P^T x.
        return _half_split(self._apply(_interleaved(queries), self.projection, positions))

    def keys(self, keys: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return _half_split(self._apply(_interleaved(keys), self.inverse.mT, positions))

    def values(self, values: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self._apply(values, self.inverse.mT, positions)

    def output(self, output: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return self._apply(output, self.projection.mT, positions)

    def _apply(self, x: Tensor, matrices: Tensor, positions: NDArray[np.int64]) -> Tensor:
        """x [tokens, heads, head_dim]: each run of four channels times its frame's matrix."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows, frames in _blocks(positions // self.tokens_per_frame):
            block = x[rows].float().reshape(frames.stop - frames.start, -1, RUN)
            out[rows] = (block @ matrices[frames]).view(out[rows].shape)
        return out


def _interleaved(x: Tensor) -> Tensor:
    """`to_interleaved` without a table of indices, which would have to be copied to a device."""
    published: Tensor = x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return published


def _half_split(x: Tensor) -> Tensor:
    """The inverse of `_interleaved`."""
    internal: Tensor = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return internal


def _blocks(frames: NDArray[np.int64]) -> Iterator[tuple[slice, slice]]:
    """Rows and frames of blocks in which frames follow one another with equally many rows."""
    if not len(frames):
        return
    edges = [0, *(np.flatnonzero(np.diff(frames)) + 1).tolist(), len(frames)]
    block: tuple[slice, slice] | None = None
    height = 0
    for start, stop in itertools.pairwise(edges):
        frame = int(frames[start])
        if block is not None and stop - start == height and frame == block[1].stop:
            block = slice(block[0].start, stop), slice(block[1].start, frame + 1)
            continue
        if block is not None:
            yield block
        block, height = (slice(start, stop), slice(frame, frame + 1)), stop - start
    assert block is not None
    yield block
