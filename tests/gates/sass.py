"""Reads machine code of kernels: what they use, and what their loops do.

``cuobjdump`` takes the code of each architecture out of a library, ``nvdisasm`` prints it, and what
is here finds its loops. Loops are natural loops of the control-flow graph, not backward branches:
code that the compiler moves out of line, such as the divergent half of a shuffle, branches back
without being a loop.

    >>> text = '''
    ... .text.kernel:
    ...         /*0000*/                   MOV R1, RZ ;
    ... .L_x_0:
    ...         /*0010*/                   LDG.E.128 R4, [R2.64] ;
    ...         /*0020*/                   FFMA R0, R4, R4, R0 ;
    ...         /*0030*/              @P0  BRA `(.L_x_0) ;
    ...         /*0040*/                   EXIT ;
    ... '''
    >>> [loop] = loops(parse_listing(text)["kernel"])
    >>> [str(instruction.opcode) for instruction in loop.own]
    ['LDG.E.128', 'FFMA', 'BRA']
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class ToolError(Exception):
    """A disassembler is missing or failed."""


# --- the tools ------------------------------------------------------------------------------------


def find_tool(name: str) -> str:
    """cuobjdump or nvdisasm: from PyPI's packages, from PATH, or from a toolkit.

    Raises:
        ToolError: none of them has it.
    """
    found = importlib.util.find_spec("nvidia")
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).glob(f"*/bin/{name}"), reverse=True):
            if os.access(path, os.X_OK):
                return str(path)
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    elsewhere = shutil.which(name) or shutil.which(name, path=str(Path(home) / "bin"))
    if elsewhere is None:
        raise ToolError(f"{name} is not installed: pip install nvidia-cuda-{name}")
    return elsewhere


def _run(command: Sequence[str | Path], folder: Path | None = None) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        raise ToolError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture, in registers a thread and bytes."""

    arch: str
    kernel: str
    registers: int
    stack: int
    shared: int
    local: int


_ARCH = re.compile(r"^arch = (\w+)")
_FUNCTION = re.compile(r"^\s*Function (\S+):$")
_USAGE = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")


def parse_usage(text: str) -> list[Usage]:
    """The report of ``cuobjdump --dump-resource-usage``."""
    found: list[Usage] = []
    arch = kernel = ""
    for line in text.splitlines():
        if match := _ARCH.match(line):
            arch = match[1]
        elif match := _FUNCTION.match(line):
            kernel = match[1]
        elif kernel and (values := dict(_USAGE.findall(line))):
            numbers = [int(values[name]) for name in ("REG", "STACK", "SHARED", "LOCAL")]
            found.append(Usage(arch, kernel, *numbers))
            kernel = ""
    return found


def resource_usage(binary: Path) -> list[Usage]:
    return parse_usage(_run([find_tool("cuobjdump"), "--dump-resource-usage", binary]))


def extract(binary: Path, folder: Path) -> list[tuple[str, Path]]:
    """Writes every cubin of a library to a folder; pairs of architecture and file."""
    _run([find_tool("cuobjdump"), "-xelf", "all", binary.resolve()], folder)
    found = []
    for path in sorted(folder.glob("*.cubin")):
        match = re.search(r"\.(sm_\w+)\.cubin$", path.name)
        if match is None:
            raise ToolError(f"{path.name} does not say its architecture")
        found.append((match[1], path))
    return found


def kernels_of(cubin: bytes) -> dict[str, int]:
    """The functions of a cubin (64-bit ELF) and their symbol numbers, which nvdisasm asks for."""
    table: dict[str, int] = {}
    (offset,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count = struct.unpack_from("<HH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    for _, kind, _, _, start, length, link, _, _, entry in headers:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = headers[link][4]
        for index in range(length // entry):
            name, info, other = struct.unpack_from("<IBB", cubin, start + index * entry)
            if info & 15 != 2 or not other & 0x10:  # STT_FUNC, STO_CUDA_ENTRY
                continue
            begin = names + name
            table[cubin[begin : cubin.index(b"\0", begin)].decode()] = index
    return table


def disassemble(cubin: Path, kernels: Mapping[str, int]) -> dict[str, list[Instruction]]:
    """The listings of the kernels, each given with its symbol number."""
    if not kernels:
        return {}
    numbers = ",".join(str(index) for index in kernels.values())
    text = _run([find_tool("nvdisasm"), "-c", "-ndf", "-fun", numbers, cubin])
    found = parse_listing(text)
    return {kernel: found[kernel] for kernel in kernels}


# --- listings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One line of a listing."""

    address: int
    predicate: str  # "", "P0", "!P3", ...
    opcode: str  # "LDG.E.128"
    operands: str
    target: int | None = None  # of a branch or call within the kernel

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes a lane that a memory access moves."""
        parts = self.opcode.split(".")
        for part, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
            if part in parts:
                return width
        return 4


_SECTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L_\S+):$")
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\S*?)(?:\s+(.*?))?\s*;")
_TARGET = re.compile(r"`\((\.L_[^)]+)\)")


def parse_listing(text: str) -> dict[str, list[Instruction]]:
    """The output of ``nvdisasm -c``, one list a kernel."""
    kernels: dict[str, list[Instruction]] = {}
    labels: dict[str, int] = {}
    lines: list[tuple[int, str, str, str]] = []
    waiting: list[str] = []
    name = ""

    def finish() -> None:
        if name:
            kernels[name] = [
                Instruction(a, p, o, rest, _target(o, rest, labels)) for a, p, o, rest in lines
            ]

    for line in text.splitlines():
        if match := _SECTION.match(line):
            finish()
            name, labels, lines, waiting = match[1], {}, [], []
        elif match := _LABEL.match(line):
            waiting.append(match[1])
        elif name and (match := _LINE.match(line)):
            address = int(match[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting = []
            lines.append((address, match[2] or "", match[3], match[4] or ""))
    finish()
    return kernels


def _target(opcode: str, operands: str, labels: Mapping[str, int]) -> int | None:
    if opcode.partition(".")[0] not in ("BRA", "CALL", "JMP"):
        return None
    match = _TARGET.search(operands)
    return labels.get(match[1]) if match else None


# --- control flow ---------------------------------------------------------------------------------


@dataclass
class Block:
    instructions: list[Instruction]
    successors: set[int] = field(default_factory=set)  # by address of the first instruction


@dataclass(frozen=True)
class Loop:
    """A natural loop; ``own`` are its instructions that lie in no loop within it."""

    header: int
    instructions: tuple[Instruction, ...]
    own: tuple[Instruction, ...]
    innermost: bool


_ENDS = ("BRA", "BRX", "BRXU", "JMP", "JMX", "CALL", "RET", "EXIT")


def _is_conditional(instruction: Instruction) -> bool:
    """Whether control may go on behind it: a predicate before it or among its operands."""
    if instruction.predicate not in ("", "PT", "UPT"):
        return True
    return instruction.name == "BRA" and not instruction.operands.lstrip().startswith("`")


def blocks(code: Sequence[Instruction]) -> dict[int, Block]:
    """The control-flow graph. A call goes to its target and on behind it.

    Where a BRX (a switch) goes is in a table that is not in the listing: it is taken to reach every
    block between it and the next BRX that nothing else reaches.
    """
    leaders = {code[0].address} if code else set()
    for i, instruction in enumerate(code):
        if instruction.target is not None:
            leaders.add(instruction.target)
        if instruction.name in _ENDS and i + 1 < len(code):
            leaders.add(code[i + 1].address)
    graph: dict[int, Block] = {}
    for instruction in code:
        if instruction.address in leaders:
            graph[instruction.address] = Block([])
            current = graph[instruction.address]
        current.instructions.append(instruction)
    order = list(graph)
    reached = {order[0]} if order else set()
    for start, following in itertools.zip_longest(order, order[1:]):
        last = graph[start].instructions[-1]
        next_ = graph[start].successors
        if last.target is not None:
            next_.add(last.target)
        ends = last.name in _ENDS and last.name != "CALL" and not _is_conditional(last)
        if not ends and following is not None:
            next_.add(following)
        reached |= next_
    switches = [start for start in order if graph[start].instructions[-1].name in ("BRX", "BRXU")]
    for start, end in itertools.zip_longest(switches, switches[1:]):
        between = [o for o in order if o > start and (end is None or o <= end)]
        graph[start].successors |= {o for o in between if o not in reached}
    return graph


def _dominators(graph: Mapping[int, Block], entry: int) -> dict[int, int]:
    """The immediate dominator of each block that the entry reaches (Cooper, Harvey, Kennedy)."""
    postorder: list[int] = []
    seen = {entry}
    stack: list[tuple[int, Iterator[int]]] = [(entry, iter(graph[entry].successors))]
    while stack:
        node, successors = stack[-1]
        for successor in successors:
            if successor not in seen:
                seen.add(successor)
                stack.append((successor, iter(graph[successor].successors)))
                break
        else:
            postorder.append(node)
            stack.pop()
    number = {node: i for i, node in enumerate(postorder)}
    before: dict[int, list[int]] = {node: [] for node in postorder}
    for node in postorder:
        for successor in graph[node].successors:
            before[successor].append(node)
    dominator = {entry: entry}
    changed = True
    while changed:
        changed = False
        for node in reversed(postorder[:-1]):
            new = -1
            for other in before[node]:
                if other not in dominator:
                    continue
                if new < 0:
                    new = other
                    continue
                a = other
                while a != new:
                    while number[a] < number[new]:
                        a = dominator[a]
                    while number[new] < number[a]:
                        new = dominator[new]
            if dominator.get(node) != new:
                dominator[node] = new
                changed = True
    return dominator


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """The natural loops of a kernel, in the order of their headers."""
    if not code:
        return []
    graph = blocks(code)
    entry = code[0].address
    dominator = _dominators(graph, entry)

    def dominates(a: int, b: int) -> bool:
        while b not in (a, entry):
            b = dominator[b]
        return a == b

    before: dict[int, set[int]] = {node: set() for node in dominator}
    for node in dominator:
        for successor in graph[node].successors:
            before[successor].add(node)
    bodies: dict[int, set[int]] = {}
    for node in dominator:
        for header in graph[node].successors:
            if not dominates(header, node):
                continue
            body = bodies.setdefault(header, {header})
            stack = [node]
            while stack:
                member = stack.pop()
                if member not in body:
                    body.add(member)
                    stack.extend(before[member])
    found = []
    for header in sorted(bodies):
        body = bodies[header]
        inner = [b for h, b in bodies.items() if h != header and h in body and b < body]
        nested: set[int] = set().union(*inner)
        found.append(
            Loop(
                header,
                tuple(i for start in sorted(body) for i in graph[start].instructions),
                tuple(i for start in sorted(body - nested) for i in graph[start].instructions),
                not inner,
            )
        )
    return found


# --- what to look for in a loop -------------------------------------------------------------------

#: Arithmetic that adds up distances, in any precision.
ARITHMETIC = ("FADD", "FFMA", "FMUL", "DADD", "DFMA", "DMUL", "HADD2", "HFMA2", "FADD2", "FFMA2")
LOCAL = ("LDL", "STL")


def count(code: Sequence[Instruction], *names: str, width: int | None = None) -> int:
    """How many instructions have one of the names, and the width if one is given."""
    return sum(i.name in names and (width is None or i.width == width) for i in code)


def narrower(code: Sequence[Instruction], name: str, width: int) -> int:
    return sum(i.name == name and i.width < width for i in code)


def is_accumulation(loop: Loop) -> bool:
    """An innermost loop that loads from global memory and computes with it."""
    return loop.innermost and count(loop.own, "LDG") > 0 and count(loop.own, *ARITHMETIC) > 0
