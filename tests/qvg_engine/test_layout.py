"""The root folders are reached through links in qvg_engine/, and only so."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qvg_engine

PACKAGE = Path(qvg_engine.__file__).parent
ROOT = Path(__file__).parents[2]
LINKED = ("block_manager", "kernels", "models", "scheduler")


@pytest.mark.parametrize("name", LINKED)
def test_a_linked_folder_is_a_folder_without_init(name: str) -> None:
    assert (PACKAGE / name).is_dir()
    assert not (PACKAGE / name / "__init__.py").exists()
    assert importlib.util.find_spec(f"qvg_engine.{name}") is not None


@pytest.mark.parametrize("name", LINKED)
def test_the_link_is_relative(name: str) -> None:
    link = ROOT / "qvg_engine" / name
    assert link.is_symlink(), "check out with links: git config core.symlinks true"
    assert os.readlink(link) == f"../{name}"


def test_the_folders_are_no_top_level_names() -> None:
    program = (
        "import importlib.util\n"
        "import qvg_engine\n"
        f"for name in {LINKED!r}:\n"
        "    spec = importlib.util.find_spec(name)\n"
        "    for folder in spec.submodule_search_locations or () if spec else ():\n"
        "        print(folder)\n"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    ours = [folder for folder in process.stdout.splitlines() if Path(folder).parent == ROOT]
    assert ours == []


def test_nothing_puts_the_root_on_the_path() -> None:
    assert not (ROOT / "conftest.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()
    assert str(ROOT) not in sys.path
