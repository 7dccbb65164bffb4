"""``python -m bench.instructions``: instructions that operations take, against those on record.

Times are noisy on a shared machine; the number of instructions is the same in every run. Each case
runs once under valgrind's callgrind, on one thread, with the instruction set avx2, the widest that
valgrind knows: int8 screening, which needs more, is left out. Counted is all that a call does,
PyTorch's own steps too. bench/instructions.json holds the counts of one compiler; those of another
are not compared.

    python -m bench.instructions            compare; exit status 1 where a case takes over 3 % more
    python -m bench.instructions --record   put what is counted on record
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import limits, results
from bench.results import BenchError

RECORD = Path(__file__).parent / "instructions.json"
#: How many more instructions than on record a case may take.
MARGIN = 0.03


def cases() -> dict[str, tuple[Callable[[], Any], float]]:
    """Operations at one size each, with how many floating-point operations their formula has.

    One FMA of a pair's component is 2; 0 where the work is not that of a formula.
    """
    import torch

    import siamcuda

    generator = torch.Generator().manual_seed(0)

    def rows(count: int, columns: int, grad: bool = False) -> torch.Tensor:
        return torch.randn(count, columns, generator=generator).requires_grad_(grad)

    x1, x2, x3 = (rows(4096, 128, grad=True) for _ in range(3))
    y = torch.arange(4096) % 2
    z, labels = rows(512, 128, grad=True), torch.arange(512) // 8
    gallery, queries = rows(8192, 128), rows(64, 128)
    plain = siamcuda.Gallery(gallery, screening="float32")
    bits = siamcuda.pack_bits(rows(16384, 128))
    codes = siamcuda.Gallery(bits, metric="hamming")
    people = torch.arange(1024) // 4
    verified = rows(1024, 128)

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        return lambda: loss().backward()

    pairs, triangle = 4096 * 128, 512 * 512 * 128
    return {
        "contrastive_loss 4096x128": (step(lambda: siamcuda.contrastive_loss(x1, x2, y)), 0),
        "chopra_loss 4096x128": (step(lambda: siamcuda.chopra_loss(x1, x2, y)), 0),
        "triplet_loss 4096x128": (step(lambda: siamcuda.triplet_loss(x1, x2, x3)), 0),
        "squared_l2 4096x128": (lambda: siamcuda.squared_l2(x1.detach(), x2.detach()), 3 * pairs),
        "batch_contrastive_loss 512x128": (
            step(lambda: siamcuda.batch_contrastive_loss(z, labels, margin=16.0)), 3 * triangle,
        ),
        "batch_chopra_loss l1 512x128": (
            step(lambda: siamcuda.batch_chopra_loss(z, labels, energy="l1")), 0,
        ),
        "batch_triplet_loss all 512x128": (
            step(lambda: siamcuda.batch_triplet_loss(z, labels)), 4 * triangle,
        ),
        "batch_triplet_loss hard 512x128": (
            step(lambda: siamcuda.batch_triplet_loss(z, labels, mining="hard")), triangle,
        ),
        "squared_cdist 512x512x128": (
            lambda: siamcuda.squared_cdist(z.detach(), z.detach()), 2 * triangle,
        ),
        "search float32 64x8192x128": (lambda: plain.search(queries, 10), 2.0 * 64 * 8192 * 128),
        "search one 8192x128": (lambda: plain.search(queries[:1], 10), 2.0 * 8192 * 128),
        "search hamming 64x16384x128 bits": (lambda: codes.search(bits[:64], 10), 0),
        "range_search 64x8192x128": (
            lambda: plain.range_search(queries, 150.0), 2.0 * 64 * 8192 * 128,
        ),
        "verification 1024x128": (
            lambda: siamcuda.verification.evaluate(verified, people, identification=False), 0,
        ),
    }  # fmt: skip


def count() -> dict[str, int]:
    """Instructions of each case; raises BenchError where nothing can be counted."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise BenchError("no valgrind")
    library = limits.program("marks", "-shared", "-fPIC")
    if not ctypes.CDLL(str(library)).siam_marks():
        raise BenchError("valgrind's headers are not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            valgrind, "--tool=callgrind", "--instr-atstart=no",
            f"--callgrind-out-file={folder}/out", sys.executable, "-m", "bench.instructions",
            "--counted", str(library),
        ]  # fmt: skip
        environment = {**os.environ, "SIAMCUDA_SIMD": "avx2", "OMP_NUM_THREADS": "1",
                       "PYTHONHASHSEED": "0"}  # fmt: skip
        done = subprocess.run(
            command, env=environment, cwd=results.ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise BenchError(f"valgrind: {done.stderr.strip()[-2000:]}")
        found = {}
        for path in Path(folder).iterdir():
            lines = path.read_text(errors="replace").splitlines()
            said = [line for line in lines if line.startswith("desc: Trigger: Client Request: ")]
            totals = [line.split()[1] for line in lines if line.startswith(("summary:", "totals:"))]
            if said and totals:
                found[said[0].split(": ", 3)[3]] = int(totals[0])
        return found


def run_counted(library: str) -> None:
    """What valgrind looks at: every case once unseen, once between two marks."""
    import torch

    torch.set_num_threads(1)
    marks = ctypes.CDLL(library)
    for name, (call, _) in cases().items():
        call()
        marks.siam_begin()
        call()
        marks.siam_end(name.encode())


def compiler() -> str:
    """Of the extension that is measured."""
    import siamcuda

    return str(siamcuda.build_info()["compiler"])


def compare(found: dict[str, int], recorded: dict[str, int]) -> list[str]:
    """Cases that take more than on record, or are on one side alone; empty if all is well."""
    wrong = [f"{name}: counted, but not on record" for name in found.keys() - recorded.keys()]
    wrong += [f"{name}: on record, but not counted" for name in recorded.keys() - found.keys()]
    for name in found.keys() & recorded.keys():
        if found[name] > recorded[name] * (1 + MARGIN):
            more = found[name] / recorded[name] - 1
            wrong.append(
                f"{name}: {found[name]:,} instructions, {recorded[name]:,} on record "
                f"(+{100 * more:.1f} %, {100 * MARGIN:g} % are allowed)"
            )
    return sorted(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; 1 where a case takes more; 2 where nothing can be counted or compared."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.instructions", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--counted", metavar="LIBRARY", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.counted:
        run_counted(asked.counted)
        return 0
    try:
        found = count()
    except BenchError as error:
        print(f"bench.instructions: {error}", file=sys.stderr)
        return 2
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {"cases": {}}
    for name, (_, operations) in cases().items():
        before, now = recorded["cases"].get(name), found[name]
        change = "" if before is None else f"{100 * (now / before - 1):+6.2f} %"
        dense = f"{operations / now:5.2f} operations each" if operations else ""
        print(f"{name:<34} {now:>13,} {change:>9}  {dense}")
    if asked.record:
        content = {"compiler": compiler(), "simd": "avx2", "cases": found}
        RECORD.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        return 0
    if recorded.get("compiler") != compiler():
        print(f"not compared: on record are those of compiler {recorded.get('compiler')}, this is "
              f"{compiler()}")  # fmt: skip
        return 2
    wrong = compare(found, recorded["cases"])
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
