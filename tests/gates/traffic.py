"""What the emulator counted in each launch, and what is to be said against it.

The emulator's statistics are those of a profiler: per source line, warp-wide requests, 32-byte
sectors that they touched and the fewest that could hold the bytes, and the ways of bank conflicts.
Counts, not time: what a cache does with the sectors is not known here.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACCESS = 16  # bytes of a vector access
SECTOR = 32


@dataclass(frozen=True)
class Site:
    """One source line that touches memory."""

    kind: str
    file: str
    line: int
    bytes: int
    requests: int
    sectors: int
    ideal_sectors: int
    max_conflict: int

    @property
    def is_global(self) -> bool:
        return self.kind.startswith("global")


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    sites: tuple[Site, ...]

    @property
    def name(self) -> str:
        """Without template arguments."""
        return self.kernel.partition("<")[0]

    def sectors(self, kind: str, bytes_: int = ACCESS) -> int:
        return sum(s.sectors for s in self.sites if s.kind == kind and s.bytes == bytes_)


@dataclass(frozen=True)
class Exemption:
    """A place where more sectors than the fewest are meant, and why."""

    kernel: str
    kind: str
    bytes: int
    reason: str


EXEMPTIONS = (
    Exemption(
        "reduce_kernel",
        "global_load",
        8,
        "One field of records of 56 bytes that lie 56 bytes apart. A record stands for at least 64 "
        "rows, so this is below 1/64 of the first kernel's traffic at D = 128 in float16.",
    ),
)

#: Formula elements whose kernels load element by element, and why; (operator, option, values that
#: are not exempt).
ELEMENTWISE = (
    (
        "triplet_margin_loss",
        "p",
        (1.0, 2.0),
        "A general order of the norm takes a powf an element and distance, tens of instructions: "
        "its kernels wait for arithmetic, and have no variant of whole accesses.",
    ),
)


def parse(line: str) -> Launch:
    data = json.loads(line)
    return Launch(
        data["kernel"],
        tuple(data["grid"]),
        tuple(data["block"]),
        tuple(Site(**site) for site in data["sites"]),
    )


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collects the launches of emulated kernels made inside; the list is filled at the end."""
    launches: list[Launch] = []
    handle, name = tempfile.mkstemp(suffix=".jsonl")
    os.close(handle)
    path = Path(name)
    before = os.environ.get("SIAM_EMULATOR_LOG")
    os.environ["SIAM_EMULATOR_LOG"] = name
    try:
        yield launches
        launches += [parse(line) for line in path.read_text().splitlines()]
    finally:
        if before is None:
            del os.environ["SIAM_EMULATOR_LOG"]
        else:
            os.environ["SIAM_EMULATOR_LOG"] = before
        path.unlink()


def complaints(launch: Launch, exemptions: Sequence[Exemption] = EXEMPTIONS) -> list[str]:
    """What is wrong with a launch: partly used sectors, bank conflicts."""
    found = []
    for site in launch.sites:
        where = f"{launch.kernel}: {site.kind} of {site.bytes} bytes at {site.file}:{site.line}"
        exempt = any(
            (e.kernel, e.kind, e.bytes) == (launch.name, site.kind, site.bytes) for e in exemptions
        )
        if site.is_global and site.sectors != site.ideal_sectors and not exempt:
            found.append(f"{where}: {site.sectors} sectors where {site.ideal_sectors} would do")
        if not site.is_global and site.max_conflict > 1:
            found.append(f"{where}: {site.max_conflict}-way bank conflict")
    return found
