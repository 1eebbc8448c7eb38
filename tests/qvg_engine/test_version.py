import importlib.metadata

from qvg_engine.version import __version__


def test_the_installed_version_is_that_of_the_source() -> None:
    assert importlib.metadata.version("qvg-engine") == __version__
