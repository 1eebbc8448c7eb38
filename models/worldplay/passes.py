"""What a pass of this family feeds its network beside latents and timesteps."""

from qvg_engine.models.program import PassInputs


class WorldPlayPass(PassInputs, frozen=True, kw_only=True):
    """A pass with an action label per latent frame; see `actions.action_labels`."""

    labels: tuple[int, ...]
