"""``python -m bench.gpu_static``: what can be known of the CUDA kernels without a GPU.

Two tables. **Kernels**, from the machine code in the extension, by family, storage and
architecture: registers, static shared memory, stack and spills, blocks that an SM can hold at once
and the share of its warps that they are, 128-bit accesses, tensor-core instructions. **Operators**,
from the emulator, which runs the same kernel text: bytes of global memory in 32-byte sectors as the
kernels ask for them, the fewest sectors that could hold those bytes, the worst bank conflict, and
kernels launched.

The last columns are **bounds, not times**: the operations of the formula at the peak of the unit
that does them, or one pass over inputs and outputs at the peak of memory, whichever is longer, of
data sheets. Nothing runs faster than that; nothing here says how much slower it runs.

    python -m bench.gpu_static                  both tables, of sm_90
    python -m bench.gpu_static --arch all       the first one, of every architecture
    python -m bench.gpu_static --page           write docs/hardware/static.md
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import results
from siamcuda._files import write_atomically

sys.path.insert(0, str(results.ROOT / "tests"))

from gates import kernels, sass, traffic  # they lie beside the tests
from gates.kernels import Kernel

PAGE = results.ROOT / "docs" / "hardware" / "static.md"
HEAD = """# What is known of the CUDA kernels without a GPU

Written by `python -m bench.gpu_static --page`. **None of it is a time.**

Operators: {rows} rows of {columns} columns, 8 rows a class, forward and backward where there is \
one, run by the emulator, which counts what the kernels ask of global memory in sectors of 32 \
bytes (with caches a GPU fetches fewer), the fewest sectors that could hold those bytes, and the \
ways of the worst bank conflict. Operations a byte and bounds are of {bound:,} rows: the \
operations of the formula at the peak of the unit that does them, or one pass over inputs and \
outputs at the peak of memory, whichever is longer, of data sheets. Nothing runs faster than \
its bound; how much slower it runs, only a GPU can say ([hardware.md](../hardware.md)).

{operators}

Kernels, from the machine code of {arch}: blocks that an SM holds at once and the share of its \
warps that they are follow from registers, static shared memory and threads.

{kernels}
"""


@dataclass(frozen=True)
class Gpu:
    """Peaks of a data sheet, dense: operations and bytes a second."""

    name: str
    fp32: float
    fp64: float
    tf32: float
    bf16: float
    memory: float


#: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and HGX B200 (an eighth of its eight GPUs).
GPUS = (
    Gpu("A100", 19.5e12, 9.7e12, 156e12, 312e12, 2.039e12),
    Gpu("H100", 67e12, 34e12, 494.7e12, 989.4e12, 3.35e12),
    Gpu("B200", 75e12, 37e12, 1125e12, 2250e12, 8e12),
)

#: Of an SM, by compute capability: warps and bytes of shared memory that blocks can have.
SM_WARPS = {"75": 32, "80": 64, "86": 48, "89": 48, "90": 64, "100": 64, "120": 48}
SM_SHARED = {
    "75": 64 << 10, "80": 164 << 10, "86": 100 << 10, "89": 100 << 10, "90": 228 << 10,
    "100": 228 << 10, "120": 100 << 10,
}  # fmt: skip
SM_BLOCKS = {"75": 16, "80": 32, "86": 16, "89": 24, "90": 32, "100": 32, "120": 24}
#: What the driver keeps of a block's shared memory since sm_80.
RESERVED_SHARED = 1024


def threads_of(kernel: Kernel) -> int:
    """Threads of a block, as csrc/cuda's headers and its launches have them."""
    if kernel.family in ("total_kernel", "moments_kernel"):
        return 512
    return 256 if kernel.tensor_cores else 128


def occupancy(arch: str, registers: int, shared: int, threads: int) -> tuple[int, float]:
    """Blocks that an SM holds at once, and the share of the warps that it could hold.

    Registers are given to warps in units of 256, shared memory to blocks in units of 128 bytes.
    """
    capability = arch.removeprefix("sm_").rstrip("a")
    warps = -(-threads // 32)
    by_registers = 65536 // (-(-registers * 32 // 256) * 256) // warps
    kept = shared + (RESERVED_SHARED if int(capability) >= 80 else 0)
    by_shared = SM_SHARED[capability] // max(-(-kept // 128) * 128, 1)
    blocks = min(by_registers, by_shared, SM_WARPS[capability] // warps, SM_BLOCKS[capability])
    return blocks, blocks * warps / SM_WARPS[capability]


# --- kernels --------------------------------------------------------------------------------------

#: What a row of the table is about: family and kind, storage, architecture.
Group = tuple[str, str, str]


def group_of(kernel: Kernel, arch: str) -> Group:
    """The row that a kernel belongs to."""
    if kernel.family == "tile_kernel":
        kind = ", long rows" if kernel.long else ""
        return (f"tiles, {kernel.engine}{kind}", kernel.storage, arch)
    if kernel.family != "rows_kernel":
        return (kernel.family, kernel.storage or "-", arch)
    kind = "value and gradient" if kernel.gradient else "value"
    access = "aligned" if kernel.aligned else "unaligned"
    return (f"{kernel.row}, {kind}, {access}", kernel.storage, arch)


@dataclass(frozen=True)
class Static:
    """One kernel on one architecture."""

    group: Group
    registers: int
    shared: int
    stack: int
    blocks: int
    warps: float  # share of an SM's
    wide: int  # instructions that access 16 bytes
    tensor: int  # HMMA, IMMA, ...


def kernels_in(binary: Path, arch: str) -> Iterator[Static]:
    """Every kernel of an extension, of one architecture or "all"."""
    code: dict[tuple[str, str], tuple[int, int]] = {}

    def read(found: str, cubin: Path) -> list[tuple[tuple[str, str], tuple[int, int]]]:
        listings = sass.disassemble(cubin, sass.kernels_of(cubin.read_bytes()))
        return [((found, symbol), counted(listing)) for symbol, listing in listings.items()]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = [one for one in sass.extract(binary, Path(folder)) if arch in (one[0], "all")]
        for part in pool.map(lambda pair: read(*pair), cubins):
            code.update(part)
    for usage in sass.resource_usage(binary):
        kernel = kernels.describe(usage.kernel)
        if not kernel.family or (usage.arch, usage.kernel) not in code:
            continue
        blocks, warps = occupancy(usage.arch, usage.registers, usage.shared, threads_of(kernel))
        yield Static(
            group_of(kernel, usage.arch), usage.registers, usage.shared,
            usage.stack + usage.local, blocks, warps, *code[usage.arch, usage.kernel],
        )  # fmt: skip


def counted(listing: Sequence[sass.Instruction]) -> tuple[int, int]:
    """Accesses of 16 bytes, and tensor-core instructions."""
    wide = sum(
        sass.count(listing, name, width=16) for name in ("LDG", "STG", "LDS", "STS", "LDGSTS")
    )
    return wide, sum(one.name.endswith("MMA") for one in listing)


def span(values: Sequence[float], digits: int = 0) -> str:
    """The least and the largest, or the one that they are."""
    low, high = (f"{x:.{digits}f}" for x in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def kernel_table(found: Sequence[Static]) -> list[str]:
    """A row for each family, storage and architecture."""
    groups: dict[Group, list[Static]] = defaultdict(list)
    for one in found:
        groups[one.group].append(one)
    lines = [
        "| kernel | storage | arch | kernels | registers | shared, bytes | stack and spills | "
        "blocks an SM | warps, % | 16-byte accesses | tensor-core instructions |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in sorted(groups):
        rows = groups[group]
        cells = [
            *group, str(len(rows)), span([r.registers for r in rows]),
            span([r.shared for r in rows]), str(sum(r.stack for r in rows)),
            span([r.blocks for r in rows]), span([100 * r.warps for r in rows]),
            span([r.wide for r in rows]), span([r.tensor for r in rows]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


# --- operators ------------------------------------------------------------------------------------

#: Rows and columns of what is emulated, and rows of what bounds are for.
ROWS, COLUMNS, BOUND_ROWS = 256, 128, 4096


@dataclass(frozen=True)
class Operator:
    """An operator with its formula's work at B rows of D columns of ``size`` bytes."""

    name: str
    call: Callable[[Any, Any], Any]
    operations: Callable[[int, int], float]
    passes: int  # over (B, D): inputs read and gradients written, each once
    pairs: int = 0  # bytes of output for each pair of rows
    inputs: int = 1
    step: bool = True  # forward and backward


@functools.cache
def operators() -> tuple[Operator, ...]:
    """What is emulated."""
    import torch

    import siamcuda

    def half(labels: Any) -> Any:
        return torch.arange(len(labels)) % 2

    return (
        Operator(
            "contrastive_loss", lambda x, y: siamcuda.contrastive_loss(x[0], x[1], half(y)),
            lambda b, d: 6.0 * b * d, 4, inputs=2,
        ),
        Operator(
            "chopra_loss", lambda x, y: siamcuda.chopra_loss(x[0], x[1], half(y)),
            lambda b, d: 6.0 * b * d, 4, inputs=2,
        ),
        Operator(
            "triplet_loss", lambda x, y: siamcuda.triplet_loss(*x),
            lambda b, d: 11.0 * b * d, 6, inputs=3,
        ),
        Operator(
            "batch_contrastive_loss", lambda x, y: siamcuda.batch_contrastive_loss(x[0], y),
            lambda b, d: 4.0 * b * b * d, 2,
        ),
        Operator(
            "batch_chopra_loss", lambda x, y: siamcuda.batch_chopra_loss(x[0], y),
            lambda b, d: 4.0 * b * b * d, 2,
        ),
        Operator(
            "batch_triplet_loss all", lambda x, y: siamcuda.batch_triplet_loss(x[0], y),
            lambda b, d: 4.0 * b * b * d, 2,
        ),
        Operator(
            "batch_triplet_loss hard",
            lambda x, y: siamcuda.batch_triplet_loss(x[0], y, mining="hard"),
            lambda b, d: 2.0 * b * b * d, 2,
        ),
        Operator(
            "squared_cdist, forward", lambda x, y: siamcuda.squared_cdist(x[0], x[0]),
            lambda b, d: 2.0 * b * b * d, 1, pairs=1, step=False,
        ),
        Operator(
            "search, k = 10", lambda x, y: siamcuda.knn(x[0], x[0], 10),
            lambda b, d: 2.0 * b * b * d, 2, step=False,
        ),
        Operator(
            "verification", lambda x, y: siamcuda.verification.evaluate(x[0], y),
            lambda b, d: 1.0 * b * b * d, 1, step=False,
        ),
    )  # fmt: skip


def bound(gpu: Gpu, operator: Operator, dtype: str) -> tuple[float, str]:
    """Seconds that nothing of BOUND_ROWS rows is faster than, and what sets them.

    A float32 product of pairs takes three TF32 products where that is the quicker way.
    """
    size = {"float64": 8, "float32": 4}.get(dtype, 2)
    paired = operator.inputs > 1
    if dtype == "float64":
        peak = gpu.fp64
    elif paired:
        peak = gpu.fp32
    elif dtype == "float32":
        peak = max(gpu.fp32, gpu.tf32 / 3)
    else:
        peak = gpu.bf16
    moved = size * (operator.passes * COLUMNS + operator.pairs * BOUND_ROWS) * BOUND_ROWS
    arithmetic = operator.operations(BOUND_ROWS, COLUMNS) / peak
    memory = moved / gpu.memory
    return max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory"


def operator_table() -> list[str]:
    """A row for each operator and dtype."""
    import torch
    from emulation import extension

    from siamcuda import _ops

    before = _ops.extension, _ops.namespace
    _ops.extension, _ops.namespace = extension.load(), torch.ops.siamcuda_emulated
    heads = " | ".join(f"{gpu.name}, µs" for gpu in GPUS)
    lines = [
        f"| operator | dtype | kernels | KiB asked for | KiB at least | worst bank conflict | "
        f"operations a byte | {heads} |",
        "|---|---|---|---|---|---|---|" + "---|" * len(GPUS),
    ]
    try:
        for operator in operators():
            for name in ("float32", "bfloat16"):
                lines.append(operator_row(operator, name))
    finally:
        _ops.extension, _ops.namespace = before
    return lines


def operator_row(operator: Operator, dtype: str) -> str:
    """One operator, emulated at ROWS x COLUMNS."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(ROWS, COLUMNS, generator=generator)
        .to(getattr(torch, dtype))
        .requires_grad_(operator.step)
        for _ in range(operator.inputs)
    ]
    labels = torch.arange(ROWS) // 8
    with traffic.recorded() as launches:
        value = operator.call(inputs, labels)
        if operator.step:
            value.backward()
    asked, least, conflict = measured(launches)
    size = 4 if dtype == "float32" else 2
    moved = size * (operator.passes * COLUMNS + operator.pairs * BOUND_ROWS) * BOUND_ROWS
    cells = [
        operator.name, dtype, str(len(launches)), f"{asked / 1024:,.0f}", f"{least / 1024:,.0f}",
        conflict, f"{operator.operations(BOUND_ROWS, COLUMNS) / moved:,.1f}",
    ]  # fmt: skip
    for gpu in GPUS:
        seconds, what = bound(gpu, operator, dtype)
        cells.append(f"{1e6 * seconds:.1f} ({what})")
    return "| " + " | ".join(cells) + " |"


def measured(launches: Sequence[traffic.Launch]) -> tuple[int, int, str]:
    """Bytes of sectors asked for, the fewest that would do, and the worst bank conflict."""
    sites = [(launch, site) for launch in launches for site in launch.sites]
    asked = sum(site.sectors for _, site in sites if site.is_global) * traffic.SECTOR
    least = sum(site.ideal_sectors for _, site in sites if site.is_global) * traffic.SECTOR
    ways, where = max(
        ((site.max_conflict, launch.name) for launch, site in sites if not site.is_global),
        default=(1, ""),
    )
    return asked, least, f"{ways}-way, {where}" if ways > 1 else "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; 1 where the extension has no CUDA kernels."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_static", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--arch", default="sm_90", help="sm_80, ..., or all")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args(arguments)
    import siamcuda

    binary = Path(siamcuda._C.__file__)
    found = list(kernels_in(binary, asked.arch))
    if not found:
        print(f"{binary}: no CUDA kernels for {asked.arch}")
        return 1
    static, dynamic = kernel_table(found), operator_table()
    if asked.page:
        text = HEAD.format(
            rows=ROWS, columns=COLUMNS, bound=BOUND_ROWS, arch=asked.arch,
            operators="\n".join(dynamic), kernels="\n".join(static),
        )  # fmt: skip
        write_atomically(PAGE, text.encode())
        return 0
    print("\n".join([*static, "", *dynamic]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
