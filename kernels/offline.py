"""What every Triton kernel takes on a GPU: compiled for it, on a machine without one.

    python -m qvg_engine.kernels.offline --capability 90 120 --json figures.json

compiles the variants of all modules in `MODULES` and prints their registers, spills, shared memory
and loop lengths; it needs no driver. With --store it writes those that the tests compare with.
"""

import argparse
import fnmatch
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from qvg_engine.errors import ConfigError, one_line
from qvg_engine.kernels.device import ARCHITECTURES
from qvg_engine.kernels.gpu import Variant, has_triton, is_interpreted

MODULES = (
    "qvg_engine.kernels.codec.gpu",
    "qvg_engine.kernels.codec.gpu_residual",
    "qvg_engine.kernels.codec.gpu_store",
    "qvg_engine.kernels.kmeans.gpu",
    "qvg_engine.kernels.kmeans.gpu_seeding",
    "qvg_engine.kernels.paged_attention.gpu",
    "qvg_engine.kernels.paged_attention.gpu_bound_values",
    "qvg_engine.kernels.paged_attention.gpu_decode_eight_bit",
    "qvg_engine.kernels.paged_attention.gpu_dense",
    "qvg_engine.kernels.paged_attention.gpu_eight_bit",
    "qvg_engine.kernels.paged_attention.gpu_fused",
    "qvg_engine.kernels.paged_attention.gpu_merge",
    "qvg_engine.kernels.paged_attention.gpu_quantise",
    "qvg_engine.kernels.rope.gpu",
)
"""The modules with Triton kernels; each has `variants()`."""

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""The shared memory that one block can have, by capability."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What one kernel takes on one architecture.

    registers: of a thread.
    spill_loads, spill_stores: instructions that move registers to local memory and back.
    local_bytes: local memory of a thread that is not on its stack.
    shared_bytes: shared memory of a block, as the launch asks for it.
    instructions: of the kernel.
    loop_instructions: of the longest loop that multiplies matrices; 0 without one.
    """

    registers: int
    spill_loads: int
    spill_stores: int
    local_bytes: int
    shared_bytes: int
    instructions: int
    loop_instructions: int

    @property
    def spills(self) -> bool:
        """Whether it has too few registers for what it keeps in them."""
        return bool(self.spill_loads or self.spill_stores or self.local_bytes)


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """A variant on an architecture, such as capability 90: its resources, or why it has none."""

    variant: str
    capability: int
    resources: Resources | None = None
    error: str | None = None


def all_variants(modules: Sequence[str] = MODULES) -> dict[str, Variant]:
    """The variants of all modules by name. Raises `ConfigError` where they cannot be compiled."""
    _check_compiler()
    variants: dict[str, Variant] = {}
    for module in modules:
        for variant in importlib.import_module(module).variants():
            assert variant.name not in variants, variant.name
            variants[variant.name] = variant
    return variants


def compile_offline(variant: Variant, capability: int) -> Resources:
    """Compile a variant for an architecture, such as 90 for sm_90, and read what it takes.

    Raises `ConfigError` without Triton, or in a process where its interpreter was chosen; an error
    of Triton's own if it cannot compile the kernel.
    """
    _check_compiler()
    assert variant.is_offered_on(capability), (variant.name, capability)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    assert set(variant.signature) == set(names), set(variant.signature) ^ set(names)
    assert set(variant.aligned) <= set(names), variant.aligned
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature[name] for name in names},
        constexprs=dict(variant.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": variant.fp_fusion,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, listing = _disassemble(compiled.asm["cubin"])
    return _read_resources(usage, listing, shared_bytes=compiled.metadata.shared)


def _check_compiler() -> None:
    if not has_triton():
        raise ConfigError("compiling kernels needs Triton: pip install 'qvg-engine[gpu]'")
    if is_interpreted():
        raise ConfigError("TRITON_INTERPRET=1 leaves nothing to compile: unset it")


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """What cuobjdump says of a cubin: resource usage, and SASS."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def run(option: str) -> str:
            command = [knobs.nvidia.cuobjdump.path, option, file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return done.stdout

        return run("-res-usage"), run("-sass")


_USAGE = re.compile(r"REG:(\d+) STACK:\d+ SHARED:\d+ LOCAL:(\d+)")
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+ )?([A-Z0-9_]+)([^;\n]*);", re.MULTILINE
)
_BRANCH_TARGET = re.compile(r"0x([0-9a-f]+)")


def _read_resources(usage: str, listing: str, *, shared_bytes: int) -> Resources:
    found = _USAGE.search(usage)
    assert found is not None, usage
    code = [(int(at, 16), name, rest) for at, name, rest in _INSTRUCTION.findall(listing)]
    assert code, listing[:1000]
    names = [name for _, name, _ in code]
    return Resources(
        registers=int(found[1]),
        spill_loads=names.count("LDL"),
        spill_stores=names.count("STL"),
        local_bytes=int(found[2]),
        shared_bytes=shared_bytes,
        instructions=len(code),
        loop_instructions=_longest_loop(code),
    )


def _longest_loop(code: Sequence[tuple[int, str, str]]) -> int:
    """Instructions of the longest loop with an MMA in it, of (address, name, operands)."""
    longest = 0
    for address, name, operands in code:
        target = _BRANCH_TARGET.search(operands) if name == "BRA" else None
        if target is None or int(target[1], 16) >= address:
            continue
        loop = [name for at, name, _ in code if int(target[1], 16) <= at <= address]
        if any("MMA" in name for name in loop):
            longest = max(longest, len(loop))
    return longest


def work_list(
    names: Sequence[str], capabilities: Sequence[int], *, sample: bool = False
) -> list[tuple[str, int]]:
    """The variants with the architectures to compile them for: all that they are offered on.

    sample: only one variant of each kernel for an architecture, another one for each.
    """
    variants = all_variants()
    offered = [(n, c) for c in capabilities for n in sorted(names) if variants[n].is_offered_on(c)]
    if not sample:
        return offered
    kernels: dict[tuple[int, int], list[str]] = {}
    for name, capability in offered:
        kernels.setdefault((id(variants[name].kernel), capability), []).append(name)
    return [
        (choices[ARCHITECTURES.index(capability) % len(choices)], capability)
        for (_, capability), choices in kernels.items()
    ]


def compile_all(work: Sequence[tuple[str, int]], *, jobs: int) -> list[Compiled]:
    """Compile the named variants for the architectures beside their names."""
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        return list(pool.map(_compile_one, *zip(*work, strict=True))) if work else []


def _compile_one(name: str, capability: int) -> Compiled:
    try:
        resources = compile_offline(all_variants()[name], capability)
    except Exception as failure:  # Triton and ptxas raise anything.
        error = one_line(failure)
        return Compiled(variant=name, capability=capability, error=error[-2000:])
    return Compiled(variant=name, capability=capability, resources=resources)


def store_figures(results: Sequence[Compiled], path: Path) -> None:
    """Write registers and loop lengths as those of this version of Triton.

    What was stored of other versions, variants and architectures stays; variants that there are no
    more are left out.
    """
    import triton

    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    figures: dict[str, dict[str, dict[str, int]]] = stored.setdefault(triton.__version__, {})
    for result in results:
        assert result.resources is not None, result
        figures.setdefault(result.variant, {})[f"sm_{result.capability}"] = {
            "registers": result.resources.registers,
            "loop": result.resources.loop_instructions,
        }
    known = all_variants()
    stored[triton.__version__] = {name: figures[name] for name in figures if name in known}
    path.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


def _print_table(results: Sequence[Compiled]) -> None:
    width = max((len(result.variant) for result in results), default=0)
    print(f"{'kernel':{width}}  arch    regs  spills  local  shared  instr   loop")
    for result in results:
        start = f"{result.variant:{width}}  sm_{result.capability:<4}"
        if result.resources is None:
            print(f"{start}  {result.error}")
            continue
        r = result.resources
        spills = r.spill_loads + r.spill_stores
        print(
            f"{start} {r.registers:4}  {spills:6}  {r.local_bytes:5}  {r.shared_bytes:6}"
            f"  {r.instructions:5}  {r.loop_instructions:5}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit status, 1 if a kernel cannot be compiled."""
    parser = argparse.ArgumentParser(prog="python -m qvg_engine.kernels.offline")
    parser.add_argument(
        "--capability", type=int, nargs="+", default=[90], choices=ARCHITECTURES, metavar="N"
    )
    parser.add_argument(
        "--sample", action="store_true", help="only one variant of each kernel for each of them"
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of variants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--store", type=Path, metavar="FILE", help="write what tests compare with")
    options = parser.parse_args(arguments)
    try:
        variants = all_variants()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = [
        name for name in variants if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)
    ]
    work = work_list(names, options.capability, sample=options.sample)
    results = compile_all(work, jobs=options.jobs)
    _print_table(results)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    failed = any(result.error for result in results)
    if options.store and not failed:
        store_figures(results, options.store)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
