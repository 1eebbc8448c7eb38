"""Names of a causal Wan network's tensors: Wan's, diffusers', and with wrappers before them."""

import re
from collections.abc import Iterable

WRAPPER_PREFIXES = ("model.", "module.", "_fsdp_wrapped_module.")

_DIFFUSERS_TO_WAN = (
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.attn1\.to_out\.0\.", ".self_attn.o."),
    (r"\.attn2\.to_out\.0\.", ".cross_attn.o."),
    (r"\.attn1\.to_([qkv])\.", r".self_attn.\1."),
    (r"\.attn2\.to_([qkv])\.", r".cross_attn.\1."),
    (r"\.attn1\.norm_", ".self_attn.norm_"),
    (r"\.attn2\.norm_", ".cross_attn.norm_"),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)
_DIFFUSERS_ALONE = re.compile(r"^condition_embedder\.|\.attn[12]\.|\.ffn\.net\.")


def wan_names(names: Iterable[str]) -> dict[str, str]:
    """Wan's name of every tensor, with the name that it was given under."""
    named = {without_prefixes(name): name for name in names}
    if not any(_DIFFUSERS_ALONE.search(name) for name in named):
        return named
    return {_from_diffusers(name): given for name, given in named.items()}


def without_prefixes(name: str, prefixes: tuple[str, ...] = WRAPPER_PREFIXES) -> str:
    """A name without what wrappers put before it and, if it was sharded, into it."""
    while name.startswith(prefixes):
        name = next(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix))
    return name.replace("_fsdp_wrapped_module.", "")


def listing(names: Iterable[str], most: int = 8) -> str:
    """Names in order, the first few of them."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:most])
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"


def _from_diffusers(name: str) -> str:
    for pattern, replacement in _DIFFUSERS_TO_WAN:
        name = re.sub(pattern, replacement, name)
    return name
