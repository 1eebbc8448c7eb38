"""A plan of a GPU's memory in words and figures."""

from rich import box
from rich.table import Table

from qvg_engine.cli.sizes import format_bytes
from qvg_engine.memory_plan import FormatPlan, MemoryPlan


def describe_memory(plan: MemoryPlan) -> list[tuple[str, str]]:
    """Rows of a name and a line for people: everything but the KV-cache."""
    weights = plan.weights
    turns = ", one at a time" if weights.offload else ""
    parts = (
        ("network", weights.network),
        ("VAE", weights.vae),
        ("text encoder", weights.text_encoder),
    )
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    activations = plan.activation_bytes
    left = plan.kv_bytes_left
    return [
        ("weights", f"{format_bytes(weights.resident)} ({listed}{turns})"),
        ("attention workspace", format_bytes(plan.workspace_bytes)),
        (
            "a step or a decode, about",
            "not known for this model" if activations is None else format_bytes(activations),
        ),
        ("text keys and values", format_bytes(plan.text_bytes)),
        ("decoder states", format_bytes(plan.decoder_bytes)),
        (
            "left for the KV-cache",
            f"{format_bytes(left)} of {format_bytes(plan.gpu_bytes)}"
            if left > 0
            else f"nothing: {format_bytes(-left)} more are needed",
        ),
    ]


def format_table(plan: MemoryPlan, *, frames_per_second: int) -> Table:
    """The KV-cache, a row a format; sizes are of all videos that were asked for."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("format", no_wrap=True)
    for heading in ("bytes/token", "pages", "codebooks", "refined", "KV-cache", "fit", "longest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in plan.formats:
        table.add_row(
            item.kv_format,
            f"{item.bytes_per_token:,.0f}",
            format_bytes(item.page_bytes),
            format_bytes(item.codebook_bytes),
            format_bytes(item.refinement_bytes),
            format_bytes(item.kv_bytes),
            f"{item.num_streams:,}",
            _longest(item, frames_per_second),
        )
    return table


def _longest(item: FormatPlan, frames_per_second: int) -> str:
    if item.longest_frames is None:
        return "any"
    return f"{item.longest_frames / frames_per_second:,.0f} s"
