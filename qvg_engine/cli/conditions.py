"""What `--conditions` says: the fields of a model's conditions as JSON."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qvg_engine.cli.start_frames import fit_frame
from qvg_engine.errors import ConfigError
from qvg_engine.models.family import ModelFamily
from qvg_engine.video.reader import read_video


def read_conditions(given: str, family: ModelFamily) -> msgspec.Struct:
    """The conditions in `given`, JSON or the name of a `.json` file.

    A picture is given as the name of its file, and brought to the size of the videos; tensors
    cannot be given. Raises `ConfigError` for what is no JSON, or no field of this model's, and
    `RequestError` for a picture that cannot be read.
    """
    wanted = family.conditions_type
    try:
        text = Path(given).read_bytes() if given.endswith(".json") else given.encode()
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"--conditions {given}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"--conditions is no JSON object: {error}") from error
    known = [field.name for field in msgspec.structs.fields(wanted)]
    unknown = sorted(fields.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"--conditions: model {family.name!r} does not have {', '.join(unknown)}; it has "
            + (", ".join(known) or "none")
        )
    try:
        return msgspec.convert(fields, wanted, dec_hook=lambda kind, x: _picture(kind, x, family))
    except msgspec.ValidationError as error:
        raise ConfigError(f"--conditions: {error}") from error


def _picture(kind: Any, given: Any, family: ModelFamily) -> Any:
    if getattr(kind, "__origin__", kind) is not np.ndarray or not isinstance(given, str):
        raise ValueError(f"{given!r} cannot be given here: use it from Python")
    assert family.codec is not None, "a family that makes videos has a codec"
    factor = family.codec.spatial_factor
    height, width = (size * factor for size in family.settings.latent_shape[1:])
    return fit_frame(read_video(given, last=1)[-1], height=height, width=width)
