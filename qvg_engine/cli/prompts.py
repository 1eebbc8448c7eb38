"""The prompts of a run, from the command line and from a file, and file names made of them."""

import re
from pathlib import Path

from qvg_engine.errors import RequestError

_SLUG_LENGTH = 80


def gather_prompts(arguments: list[str], prompts_file: Path | None) -> list[str]:
    """Return the prompts of the command line, then those of the file: one a line.

    In the file, blank lines and lines that start with # are skipped. Raises RequestError if there
    is no prompt at all, a prompt is blank, or the file cannot be read.
    """
    prompts = [prompt.strip() for prompt in arguments]
    if "" in prompts:
        raise RequestError("a prompt is empty: say what the video should show")
    if prompts_file is not None:
        prompts += _read_prompts(prompts_file)
    if not prompts:
        raise RequestError(
            "no prompts: give at least one in quotes, or a file of them with --prompts-file"
        )
    return prompts


def video_name(prompt: str, seed: int) -> str:
    """Return the name of the file for a video, such as a-red-circle-seed7.mp4."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    if len(slug) > _SLUG_LENGTH:
        # Whole words, where there is more than one.
        slug = slug[: _SLUG_LENGTH + 1].rpartition("-")[0] or slug[:_SLUG_LENGTH]
    return f"{slug or 'video'}-seed{seed}.mp4"


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError(f"cannot read --prompts-file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"cannot read --prompts-file {path}: save it as UTF-8 text") from error
    prompts = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if not prompts:
        raise RequestError(f"--prompts-file {path} holds no prompts: write one a line")
    return prompts
