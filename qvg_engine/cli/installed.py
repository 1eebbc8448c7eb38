"""What is installed beside qvg_engine, and what each piece is for."""

import importlib
import importlib.metadata
import platform

import msgspec

from qvg_engine.errors import one_line

_PACKAGES = (
    ("torch", "torch", "the network; nothing runs without it"),
    ("numba", "numba", "compiled loops on the CPU; nothing runs without it"),
    ("av", "av", "PyAV, writes and reads MP4 files; nothing is written without it"),
    ("triton", "triton", "the kernels on GPUs; without it they are plain torch, and slow"),
    ("xformers", "xformers", "another dense attention on GPUs"),
    ("flash-attn", "flash_attn", "another dense attention on GPUs"),
)


class InstalledPackage(msgspec.Struct, frozen=True, kw_only=True):
    """A package: its version (None: not installed), what it brings, and why it does not load."""

    name: str
    version: str | None
    purpose: str
    import_error: str | None = None

    @property
    def status(self) -> str:
        """One line for people."""
        if self.version is None:
            return f"not installed; it would bring {self.purpose}"
        if self.import_error is not None:
            return f"{self.version}, but it does not load: {self.import_error}"
        return self.version


def list_installed() -> list[InstalledPackage]:
    """Python and the packages that the engine uses or could use, each tried by importing it."""
    python = InstalledPackage(
        name="python", version=platform.python_version(), purpose="the interpreter"
    )
    return [python, *(_look_up(*package) for package in _PACKAGES)]


def _look_up(distribution: str, module: str, purpose: str) -> InstalledPackage:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return InstalledPackage(name=distribution, version=None, purpose=purpose)
    import_error = None
    try:
        importlib.import_module(module)
    except Exception as error:  # A broken install raises anything, and reporting it is the point.
        import_error = one_line(error)
    return InstalledPackage(
        name=distribution, version=version, purpose=purpose, import_error=import_error
    )
