"""Packages that only some models need, imported when such a model is loaded."""

import importlib
from types import ModuleType

from qvg_engine.errors import ConfigError


def require_package(name: str, *, what: str) -> ModuleType:
    """Import a package of the extra `models`; `ConfigError` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ConfigError(
            f"{what} needs {package}, which is not installed: pip install 'qvg-engine[models]'"
        ) from error
