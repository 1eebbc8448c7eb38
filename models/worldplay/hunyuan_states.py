"""The states of the 8B's three encoders as the rows of one text.

A text is held on the host, hashed and compared there; what the network makes of it is computed
once a text, on its device. So the states of all encoders travel together: each row has its kind
in the first column, then the state, then zeros.
"""

import torch
from torch import Tensor

from qvg_engine.models.worldplay.hunyuan_config import HunyuanConfig
from qvg_engine.models.worldplay.hunyuan_text import GLYPHS, IMAGE, LANGUAGE


def pack_states(
    config: HunyuanConfig, language: Tensor, glyphs: Tensor | None, image: Tensor | None
) -> Tensor:
    """States [l, text_dim], [g, glyph_dim] and [i, image_dim] as fp32 rows on the host."""
    width = 1 + max(config.text_dim, config.glyph_dim, config.image_dim)
    parts = []
    for kind, states in ((IMAGE, image), (GLYPHS, glyphs), (LANGUAGE, language)):
        if states is None:
            continue
        rows = torch.zeros(len(states), width)
        rows[:, 0] = kind
        rows[:, 1 : 1 + states.shape[1]] = states
        parts.append(rows)
    return torch.cat(parts)


def unpack_states(
    config: HunyuanConfig, rows: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The inverse of `pack_states`, for rows on the host."""
    kinds = rows[:, 0]

    def states(kind: int, width: int) -> Tensor:
        return rows[kinds == kind, 1 : 1 + width]

    glyphs, image = states(GLYPHS, config.glyph_dim), states(IMAGE, config.image_dim)
    return (
        states(LANGUAGE, config.text_dim),
        glyphs if len(glyphs) else None,
        image if len(image) else None,
    )
