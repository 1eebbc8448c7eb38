"""WorldPlay-5B: Wan2.2's block with an action embedding and attention between cameras."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qvg_engine.models.attention import Attention, EngineAttention
from qvg_engine.models.wan.config import WanConfig
from qvg_engine.models.wan.network import Block, WanNetwork, time_sinusoid
from qvg_engine.models.wan.rows import PassSplits, apply_split


class CameraBlock(Block):
    """Adds the result of attention between cameras, projected by weights of its own."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.camera_output = nn.Linear(config.dim, config.dim)

    def _attend(
        self, y: Tensor, layer: int, attention: Attention, splits: PassSplits | None
    ) -> Tensor:
        assert isinstance(attention, EngineAttention), "attention under one transform only"
        rotated, projected = attention.self_attentions(
            layer,
            self.self_attn.queries(y, splits),
            self.self_attn.keys(y, splits),
            self.self_attn.values(y, splits),
        )
        cameras = apply_split(self.camera_output, projected.flatten(1), splits)
        return self.self_attn.output(rotated, splits) + cameras


class CameraWanNetwork(WanNetwork):
    """The network of the 5B; see `WanNetwork` for shapes and channel order."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.action_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.blocks = nn.ModuleList(CameraBlock(config) for _ in range(config.num_layers))

    def forward_actions(
        self,
        patches: Tensor,
        timesteps: Tensor,
        labels: Tensor,
        tokens_per_frame: Sequence[int],
        attention: EngineAttention,
        *,
        splits: PassSplits | None = None,
    ) -> Tensor:
        """`WanNetwork.forward` with action labels [F]; both embeddings are added."""
        frame_splits = splits.frames_view() if splits is not None else None
        time = apply_split(
            self.time_embedding, self._sinusoid(timesteps, patches.dtype), frame_splits
        ) + apply_split(self.action_embedding, self._sinusoid(labels, patches.dtype), frame_splits)
        return self._predict(patches, time, tokens_per_frame, attention, splits)

    def _sinusoid(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        return time_sinusoid(numbers, self.config.freq_dim).to(dtype)
