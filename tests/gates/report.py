"""A table of what the kernels in a built extension use, by family and architecture.

python tests/gates/report.py [siamcuda/_C*.so]
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gates import kernels, sass
from gates.kernels import Kernel

#: What a row of the table is about.
Group = tuple[str, str, str]


def group_of(kernel: Kernel, arch: str) -> Group:
    if kernel.family == "tile_kernel":
        kind = ", long rows" if kernel.long else ""
        return (f"tiles, {kernel.engine}{kind}", kernel.storage, arch)
    if kernel.family != "rows_kernel":
        return (kernel.family, kernel.storage or "-", arch)
    kind = "value and gradient" if kernel.gradient else "value"
    access = "aligned" if kernel.aligned else "unaligned"
    return (f"{kernel.row}, {kind}, {access}", kernel.storage, arch)


def span(values: Sequence[float], digits: int = 0) -> str:
    low, high = (f"{x:.{digits}f}" for x in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def main(arguments: Sequence[str]) -> int:
    if arguments:
        binary = Path(arguments[0])
    else:
        import siamcuda

        binary = Path(siamcuda._C.__file__)
    registers: dict[Group, list[int]] = defaultdict(list)
    stack: dict[Group, int] = defaultdict(int)
    for usage in sass.resource_usage(binary):
        kernel = kernels.describe(usage.kernel)
        if kernel.family:
            registers[group_of(kernel, usage.arch)].append(usage.registers)
            stack[group_of(kernel, usage.arch)] += usage.stack + usage.local
    if not registers:
        print(f"{binary}: no CUDA kernels")
        return 1
    slots: dict[Group, list[float]] = defaultdict(list)

    def measure(arch: str, cubin: Path) -> list[tuple[Group, float]]:
        names = {
            symbol: number
            for symbol, number in sass.kernels_of(cubin.read_bytes()).items()
            if kernels.describe(symbol).aligned
        }
        found = []
        for symbol, code in sass.disassemble(cubin, names).items():
            loops = sass.loops(code)
            row_loop = kernels.find_row_loop(loops)
            summing = kernels.find_summing(loops, row_loop) if row_loop else None
            if summing is not None:
                found.append((group_of(kernels.describe(symbol), arch), summing.bytes_per_slot))
        return found

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = sass.extract(binary, Path(folder))
        for found in pool.map(lambda pair: measure(*pair), cubins):
            for group, value in found:
                slots[group].append(value)
    print("| kernel | storage | arch | kernels | registers | stack | loaded bytes a slot |")
    print("|---|---|---|---|---|---|---|")
    for group in sorted(registers):
        row = [*group, str(len(registers[group])), span(registers[group]), str(stack[group])]
        row.append(span(slots[group], 1) if group in slots else "")
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
