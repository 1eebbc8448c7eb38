"""A capacity plan in words: what a video takes, how many fit, and what would."""

from qvg_engine.cli.sizes import format_bytes, size_argument
from qvg_engine.plan import CapacityPlan


def describe_plan(plan: CapacityPlan, *, frames_per_second: int) -> list[tuple[str, str]]:
    """Rows of a name and a line for people."""
    more = plan.codebook_bytes + plan.refinement_bytes
    pages = "pages and what belongs to them" if more else "pages"
    parts = (("codebooks", plan.codebook_bytes), ("refinements", plan.refinement_bytes))
    beside_pages = "".join(f"{format_bytes(size)} of {name}, " for name, size in parts if size)
    beside = plan.decoder_bytes_per_stream + plan.text_bytes_per_stream
    return [
        (
            "one video takes",
            f"{plan.pages_per_stream:,} {pages} ({format_bytes(plan.kv_bytes_per_stream)}), "
            f"and {format_bytes(beside)} for decoder and text",
        ),
        (
            "the engine takes",
            f"{plan.num_pages:,} pages ({format_bytes(plan.num_pages * plan.page_bytes)}), "
            f"{beside_pages}and {format_bytes(plan.workspace_bytes)} of workspace",
        ),
        ("at the same time", _describe_streams(plan)),
        ("longest video", _describe_longest(plan, frames_per_second)),
    ]


def _describe_streams(plan: CapacityPlan) -> str:
    if plan.fits:
        return f"{plan.num_streams:,}; more of them wait for their turn"
    if plan.num_pages < plan.pages_per_stream:
        needed = size_argument(plan.kv_bytes_per_stream)
        return f"not even one: make it shorter, or give --kv-memory {needed} or more"
    return "not even one: the engine's settings leave no place for its decoder or its text"


def _describe_longest(plan: CapacityPlan, frames_per_second: int) -> str:
    if plan.longest_frames is None:
        return "any length: the model's window bounds what a video holds"
    return f"{plan.longest_frames:,} frames ({plan.longest_frames / frames_per_second:.1f} s)"
