"""What this family says of a pass beside what every family does."""

from torch import Tensor

from qvg_engine.models.program import PassInputs, PassRecord


class WorldPlayPass(PassInputs, frozen=True, kw_only=True):
    """A pass with an action label per latent frame; see `actions.action_labels`."""

    labels: tuple[int, ...]


class WorldPlayRecord(PassRecord, frozen=True, kw_only=True):
    """A pass with the latent frames of the video that it ran; those of a memory pass are chosen.

    `guided_flow` [F, C, h, w] is what the branches' flows were combined to.
    """

    frames: tuple[int, ...]
    guided_flow: Tensor
