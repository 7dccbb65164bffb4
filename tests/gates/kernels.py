"""What each kernel promises about its machine code, by family, and what is to be said against it.

A kernel that no rule knows is a complaint: a new family says here what its main loop must be.

Row kernels are bound by memory, so arithmetic as the bulk of their issue slots would be no merit.
What is asked instead of the stretch that sums a row (from the first held load to the end of the
loop over what is left): it loads in whole 16-byte accesses only, as many together as the header
says, and loads at least MIN_BYTES_PER_SLOT for each instruction that a warp issues there. The
fastest memory over the most schedulers delivers about 7 bytes a slot (B200: 8 TB/s, 148 SMs, 4
schedulers, 1.9 GHz; H100: 3.6; A100: 3.3), so that stretch waits for memory, not for issue. That is
arithmetic on data sheets: nothing here has been timed, what a row costs besides (its index, label,
formula and shuffles) is not in it, and neither is the rate of float64 units.

Tile kernels are bound by arithmetic: in their main loop multiply-adds are the bulk of the issue
slots, or, on tensor cores, keep those of sm_80 (eight cycles an instruction) at least as busy as
issue does, and with 16 bits three quarters as busy, which is the price of twice as many warps.
Tensor cores of sm_90 are twice as fast, and wait for issue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gates import sass
from gates.sass import Instruction, Loop, Usage

HELD = 4  # kHeldAccesses
ACCESS = 16  # kAccessBytes
WARP = 32
MIN_BYTES_PER_SLOT = 8.0
#: 65536 registers over the blocks that __launch_bounds__ asks for, of 128 threads each.
REGISTERS = {8: 64, 6: 80, 4: 128, 3: 168, 2: 255, 1: 255}
#: Loads and stores that are not of a row's accesses: a label of any of 9 types, an upstream
#: gradient of any of 4; values of any of 4 types, and 7 fields of partial sums.
SCALAR_LOADS = 9 + 4
SCALAR_STORES = 4 + 7


@dataclass(frozen=True)
class Kernel:
    """What a mangled name says."""

    symbol: str
    family: str
    loss: str = ""
    row: str = ""
    element: str = ""
    storage: str = ""
    aligned: bool = False
    gradient: bool = False
    engine: str = ""
    long: bool = False
    queries: int = 1

    @property
    def inputs(self) -> int:
        return 3 if self.row.startswith("Triplet") else 2

    @property
    def held(self) -> bool:
        """Whether rows are kept in registers between their sum and their gradient."""
        return self.element != "PowerDifference"

    @property
    def blocks(self) -> int:
        """Blocks an SM that __launch_bounds__ asks for."""
        if self.family in (
            "row_norms_kernel", "mask_kernel", "scale_kernel", "near_kernel", "values_kernel",
            "round_kernel", "bounds_kernel", "sort_kernel", "merge_kernel", "unit_kernel",
            "root_kernel", "hamming_kernel",
        ):  # fmt: skip
            return 8
        if self.family == "gradient_kernel":
            return 6 if self.storage == "double" else 8
        if self.family == "anchor_kernel":
            return 8 - 2 * (self.storage == "double") - 2 * (self.engine == "kSoft")
        if self.family in ("picks_kernel", "symmetric_kernel", *DIRECT):
            return 4
        if self.family == "product_kernel":
            return 2
        if self.family in ("total_kernel", "moments_kernel"):
            return 4  # one of 512 threads
        if self.tensor_cores:
            return 4  # 2 of 256 threads
        if self.family == "tile_kernel":
            if self.engine == "kBits":
                return 3
            return 3 if self.engine == "kFma32" and self.storage == "float" and not self.long else 2
        if self.family != "rows_kernel":
            return 1
        return 3 if self.row == "TripletSwap" or (self.inputs == 3 and self.gradient) else 4

    @property
    def tensor_cores(self) -> bool:
        return self.engine in ("kMma16", "kTf32x3") or self.family == "product_tensor_kernel"

    def __str__(self) -> str:
        if self.family == "product_tensor_kernel":
            return f"{self.family}<{self.storage}, {self.engine == 'signs'}>"
        if self.family == "tile_kernel":
            return f"{self.family}<{self.engine}, {self.storage}, {self.long}>"
        if self.family == "anchor_kernel":
            return f"{self.family}<{self.engine}, {self.storage}>"
        if self.family in DIRECT:
            return f"{self.family}<{self.storage}, {self.queries}>"
        if not self.family.startswith("rows_"):
            return self.family
        flags = "" if self.family != "rows_kernel" else f", {self.aligned}, {self.gradient}"
        return f"{self.family}<{self.loss}, {self.row}<{self.element}>, {self.storage}{flags}>"


_LENGTH = re.compile(r"(?<![S\d])\d+")
_FAMILY = re.compile(r"^_ZN8siamcuda4cuda\d+(\w+?_kernel)I")
_FLAGS = re.compile(r"Lb([01])ELb([01])EEEv")
_STORAGE = re.compile(r"(4HalfE|8BFloat16E|E+f|E+d|sf|sd)(?:Lb[01]ELb[01]E)?EEv")
#: TileEngine of math/tiles.h, in its order.
ENGINES = ("kFma32", "kFma64", "kMma16", "kTf32x3", "kAbsolute", "kBits")
_TILE = re.compile(r"tile_kernelILNS_4math10TileEngineE(\d)E(NS\d?_\d+\w+?E|f|d)Lb([01])E")
_PRODUCT = re.compile(
    r"(?:product|product_tensor|gradient|picks)_kernelI(NS_4math\d+\w+?E|f|d)(?:Lb([01])E)?E"
)
#: AnchorKind of cuda/triplets.cuh, in its order.
ANCHORS = ("kPick", "kHinge", "kSoft", "kSemihard")
_ANCHOR = re.compile(r"anchor_kernelI(f|d)LNS\d?_\d+AnchorKindE(\d)E")
#: Kernels of a search that compute pairs directly, and how many queries a row meets at once.
DIRECT = ("scan_kernel", "select_kernel", "within_kernel")
_DIRECT = re.compile(r"(?:scan|select|within)_kernelI(NS_4math\d+\w+?E|f|d)(?:Li(\d)E)?E")
_STORAGES = {
    "4HalfE": "Half", "8BFloat16E": "BFloat16", "4BitsE": "Bits", "f": "float", "d": "double"
}  # fmt: skip


def _identifiers(symbol: str) -> list[str]:
    """The names in a mangled symbol: a length, then as many letters; S2_ repeats an earlier one."""
    found, at = [], 0
    while match := _LENGTH.search(symbol, at):
        length = int(match[0])
        name = symbol[match.end() : match.end() + length]
        if re.fullmatch(r"[A-Za-z_]\w*", name):
            found.append(name)
            at = match.end() + length
        else:
            at = match.end()
    return found


def describe(symbol: str) -> Kernel:
    """What the mangled name of a kernel of siamcuda says about it."""
    match = _FAMILY.match(symbol)
    if match is None:
        return Kernel(symbol, "")
    family = match[1]
    if tile := _TILE.search(symbol):
        storage = next(name for end, name in _STORAGES.items() if tile[2].endswith(end))
        engine = ENGINES[int(tile[1])]
        return Kernel(symbol, family, storage=storage, engine=engine, long=tile[3] == "1")
    if product := _PRODUCT.search(symbol):
        storage = next(name for end, name in _STORAGES.items() if product[1].endswith(end))
        return Kernel(symbol, family, storage=storage, engine="signs" * int(product[2] or 0))
    if direct := _DIRECT.search(symbol):
        storage = next(name for end, name in _STORAGES.items() if direct[1].endswith(end))
        return Kernel(symbol, family, storage=storage, queries=int(direct[2] or 1))
    if anchor := _ANCHOR.search(symbol):
        engine = ANCHORS[int(anchor[2])]
        return Kernel(symbol, family, storage=_STORAGES[anchor[1]], engine=engine)
    if not family.startswith("rows_"):
        return Kernel(symbol, family)
    names = [name for name in _identifiers(symbol) if name not in ("siamcuda", "cuda", "math")]
    elements = [name for name in names[2:] if name.endswith("Difference")]
    storage = _STORAGE.search(symbol)
    flags = _FLAGS.search(symbol)
    return Kernel(
        symbol,
        family,
        loss=names[1],
        row=names[2],
        element=elements[0] if elements else "",
        storage="" if storage is None else _STORAGES[storage[1].lstrip("Es")],
        aligned=flags is not None and flags[1] == "1",
        gradient=flags is not None and flags[2] == "1",
    )


# --- registers and local memory -------------------------------------------------------------------

FAMILIES = (
    "rows_kernel",
    "rows_double_backward_kernel",
    "reduce_kernel",
    "tile_kernel",
    "row_norms_kernel",
    "product_kernel",
    "product_tensor_kernel",
    "near_kernel",
    "gradient_kernel",
    "mask_kernel",
    "anchor_kernel",
    "picks_kernel",
    "symmetric_kernel",
    "values_kernel",
    "total_kernel",
    "moments_kernel",
    "capability_kernel",
    "scale_kernel",
    "round_kernel",
    "bounds_kernel",
    "scan_kernel",
    "select_kernel",
    "within_kernel",
    "sort_kernel",
    "merge_kernel",
    "unit_kernel",
    "root_kernel",
    "hamming_kernel",
)
#: Kernels that may have a stack frame, by (family, element, storage), and why. None needs one.
STACK_EXEMPTIONS: dict[tuple[str, str, str], str] = {}


def usage_complaints(usage: Usage) -> list[str]:
    """Registers above the launch bounds, spills, stack frames."""
    kernel = describe(usage.kernel)
    where = f"{usage.arch} {kernel if kernel.family else usage.kernel}"
    if kernel.family not in FAMILIES:
        return [f"{where}: no rule knows this kernel; add one to tests/gates/kernels.py"]
    found = []
    if usage.registers > REGISTERS[kernel.blocks]:
        limit = REGISTERS[kernel.blocks]
        found.append(f"{where}: {usage.registers} registers, launch bounds allow {limit}")
    exempt = (kernel.family, kernel.element, kernel.storage) in STACK_EXEMPTIONS
    if (usage.stack or usage.local) and not exempt:
        found.append(f"{where}: {usage.stack} bytes of stack and {usage.local} of local memory")
    return found


# --- main loops of row kernels --------------------------------------------------------------------


@dataclass(frozen=True)
class Summing:
    """The stretch of a row kernel that sums a row."""

    code: tuple[Instruction, ...]  # without the loop over what is left
    rest: Loop  # that loop
    loads: int  # 16-byte loads in `code`

    @property
    def bytes_per_slot(self) -> float:
        return WARP * ACCESS * self.loads / len(self.code)


def find_row_loop(loops: Sequence[Loop]) -> Loop | None:
    """The loop over rows: it has the most 16-byte loads of its own and a loop of accesses in it."""
    around = [
        loop
        for loop in loops
        if any(sass.is_accumulation(o) and _inside(o, loop) for o in loops)
        and sass.count(loop.own, "SHFL", "CALL", "WARPSYNC", "BRA") > 0
    ]
    return max(around, key=lambda loop: sass.count(loop.own, "LDG", width=ACCESS), default=None)


def _inside(inner: Loop, outer: Loop) -> bool:
    if inner.header == outer.header:
        return False
    return any(i.address == inner.header for i in outer.instructions)


def find_summing(loops: Sequence[Loop], row_loop: Loop) -> Summing | None:
    wide = [i.address for i in row_loop.own if i.name == "LDG" and i.width == ACCESS]
    accesses = [o for o in loops if sass.is_accumulation(o) and _inside(o, row_loop)]
    behind = [loop for loop in accesses if wide and loop.header > wide[0]]
    if not behind:
        return None
    first = wide[0]
    end = max(i.address for i in behind[0].instructions)
    code = tuple(i for i in row_loop.own if first <= i.address <= end)
    return Summing(code, behind[0], sass.count(code, "LDG", width=ACCESS))


def is_rescue(loop: Loop, kernel: Kernel) -> bool:
    """The cold loop that sums a row again in double, element by element.

    Told by its arithmetic, which is in double alone where the storage is not: rows whose squares
    leave float's range go there, and no other.
    """
    if kernel.storage == "double" or not sass.is_accumulation(loop):
        return False
    wide = sass.count(loop.own, "DADD", "DFMA", "DMUL")
    return wide > 0 and sass.count(loop.own, "FADD", "FFMA", "FMUL", "FADD2", "FFMA2") == 0


def code_complaints(arch: str, kernel: Kernel, code: Sequence[Instruction]) -> list[str]:
    """What is wrong with the machine code of one kernel."""
    found = []
    if sass.count(code, *sass.LOCAL):
        found.append(f"{sass.count(code, *sass.LOCAL)} accesses of local memory")
    if kernel.family == "rows_kernel":
        found += _aligned(kernel, code) if kernel.aligned else _unaligned(code)
    if kernel.family in ("tile_kernel", "product_tensor_kernel"):
        found += _tile(arch, kernel, code)
    if kernel.family in DIRECT:
        found += _direct(kernel, code)
    if kernel.family == "product_kernel":
        found += (_signs if kernel.engine == "signs" else _product)(kernel, code)
    return [f"{arch} {kernel}: {text}" for text in found]


def _unaligned(code: Sequence[Instruction]) -> list[str]:
    wide = sass.count(code, "LDG", "STG", width=ACCESS)
    return [f"{wide} accesses of 16 bytes, which would fault"] if wide else []


def _aligned(kernel: Kernel, code: Sequence[Instruction]) -> list[str]:
    found = []
    loops = sass.loops(code)
    cold = [loop for loop in loops if is_rescue(loop, kernel)]
    loads, stores = (sass.narrower(code, name, ACCESS) for name in ("LDG", "STG"))
    loads -= sum(sass.narrower(loop.own, "LDG", ACCESS) for loop in cold)
    if loads > SCALAR_LOADS:
        found.append(f"{loads} loads below 16 bytes, labels and upstream need {SCALAR_LOADS}")
    if stores > SCALAR_STORES:
        found.append(f"{stores} stores below 16 bytes, values and sums need {SCALAR_STORES}")
    wide_stores = sass.count(code, "STG", width=ACCESS)
    if not kernel.gradient and wide_stores:
        found.append(f"{wide_stores} stores of 16 bytes in a kernel without gradients")

    loops = [loop for loop in loops if loop not in cold]
    accesses = [loop for loop in loops if sass.is_accumulation(loop)]
    row_loop = find_row_loop(loops)
    if row_loop is None:
        return [*found, "no loop over rows with a loop of accesses in it"]
    for loop in accesses:
        where = f"the loop at {loop.header:#x}"
        if sass.narrower(loop.own, "LDG", ACCESS):
            found.append(f"{where} has loads below 16 bytes")
        if sass.count(loop.own, "LDG", width=ACCESS) % kernel.inputs:
            found.append(f"{where} does not load all {kernel.inputs} inputs alike")
        if sass.narrower(loop.own, "STG", ACCESS):
            found.append(f"{where} has stores below 16 bytes")
    if kernel.gradient and not any(sass.count(loop.own, "STG", width=ACCESS) for loop in accesses):
        found.append("no loop of accesses stores 16 bytes at once")
    if not kernel.held:
        return found
    summing = find_summing(loops, row_loop)
    if summing is None:
        return [*found, "no 16-byte loads that are held, with a loop of accesses behind them"]
    wanted = HELD * kernel.inputs
    if summing.loads != wanted:
        found.append(f"{summing.loads} loads of 16 bytes are held, not {wanted}")
    if sass.narrower(summing.code, "LDG", ACCESS):
        found.append("loads below 16 bytes while a row is summed")
    if kernel.gradient and sass.count(row_loop.own, "STG", width=ACCESS) != wanted:
        stored = sass.count(row_loop.own, "STG", width=ACCESS)
        found.append(f"{stored} stores of 16 bytes for what is held, not {wanted}")
    if summing.bytes_per_slot < MIN_BYTES_PER_SLOT:
        found.append(
            f"{summing.bytes_per_slot:.1f} bytes an issue slot while a row is summed, below "
            f"{MIN_BYTES_PER_SLOT}"
        )
    return found


# --- main loops of tile kernels -------------------------------------------------------------------

#: Products of the main loop, by engine: the instruction, and how many of them. The loop of kFma32
#: and kFma64 takes one fragment of 16 bytes (8 in 16 bits); that of kTf32x3 8 dimensions; that of
#: kMma16 a stage; that of kBits 128 bits, three counts for four words.
PRODUCTS = {
    "kFma32": ("FFMA", 256),
    "kFma64": ("DFMA", 128),
    "kMma16": ("HMMA", 16),
    "kTf32x3": ("HMMA", 24),
    "kBits": ("POPC", 192),
}
#: Of sums of |x - y|: a difference and an addition for each product.
ABSOLUTE = {"float": ("FADD", 512), "double": ("DADD", 256)}
#: Four terms of a product with weights, 8 x 8 outputs a thread, or 8 x 4 in double.
WEIGHTED = {"float": ("FFMA", 256), "double": ("DFMA", 128)}
#: With signs, 8 x 4 outputs: a comparison and an addition up, and down; four terms, in double one.
SIGNS = {"float": ("FADD", "FSETP", 256), "double": ("DADD", "DSETP", 64)}
MIN_SIGNS_SHARE = {"float": 0.85, "double": 0.4}  # in double an addition is chosen by two selects
MIN_WEIGHTED = {"float": 0.85, "double": 0.78}
MIN_SHARE = {"float": 0.85, "double": 0.8, "Half": 0.7, "BFloat16": 0.6}  # 16 bits are widened
MMA_BUSY = {"kMma16": 0.75}  # at least, of the time that issue takes; others always
POPC_CYCLES = 8  # of a warp, at 16 lanes a cycle and multiprocessor
MMA_CYCLES = 8  # of sm_80's tensor cores, for m16n8k16 and for m16n8k8 in TF32
#: Eight terms of a product with weights on tensor cores.
TENSOR_WEIGHTED = {"float": ("HMMA", 24), "Half": ("HMMA", 16), "BFloat16": ("HMMA", 16)}
WIDENED = "BFloat16", "Half"


def has_body(arch: str, kernel: Kernel) -> bool:
    """Whether the architecture needs the kernel: see kEngineCompiled in tiles.cuh."""
    tensor_cores = int(re.sub(r"\D", "", arch)) >= 80
    if kernel.tensor_cores:
        return tensor_cores
    return kernel.storage not in WIDENED or not tensor_cores


def copies_of(kernel: Kernel) -> int:
    """Chunks of 16 bytes that a thread copies for a stage."""
    if kernel.family == "product_tensor_kernel":
        return 3 if kernel.storage == "float" else 2
    return 3 if kernel.tensor_cores else 6


def products_of(kernel: Kernel) -> tuple[str, int]:
    if kernel.family == "product_tensor_kernel":
        return TENSOR_WEIGHTED[kernel.storage]
    if kernel.family == "product_kernel":
        return WEIGHTED.get(kernel.storage, WEIGHTED["float"])  # 16 bits are widened on the way in
    return ABSOLUTE[kernel.storage] if kernel.engine == "kAbsolute" else PRODUCTS[kernel.engine]


def _product(kernel: Kernel, code: Sequence[Instruction]) -> list[str]:
    name, wanted = products_of(kernel)
    loop = find_products(kernel, sass.loops(code))
    if loop is None:
        return [f"no loop of {wanted} {name}"]
    share = wanted / sum(i.name != "NOP" for i in loop.own)
    least = MIN_WEIGHTED["double" if kernel.storage == "double" else "float"]
    found = [] if share >= least else [f"{name} is {share:.0%} of the main loop, below {least:.0%}"]
    if sass.narrower(loop.own, "LDS", ACCESS):
        found.append("shared loads below 16 bytes in the main loop")
    return found


def _signs(kernel: Kernel, code: Sequence[Instruction]) -> list[str]:
    addition, comparison, wanted = SIGNS[kernel.storage]
    loop = next((o for o in sass.loops(code) if sass.count(o.own, addition) == wanted), None)
    if loop is None or sass.count(loop.own, comparison) != wanted:
        return [f"no loop of {wanted} {addition} and {wanted} {comparison}"]
    share = 2 * wanted / sum(i.name != "NOP" for i in loop.own)
    least = MIN_SIGNS_SHARE[kernel.storage]
    found = [] if share >= least else [f"signs are {share:.0%} of the main loop, below {least:.0%}"]
    if sass.narrower(loop.own, "LDS", ACCESS):
        found.append("shared loads below 16 bytes in the main loop")
    return found


def find_products(kernel: Kernel, found: Sequence[Loop]) -> Loop | None:
    """The innermost loop that holds as many products as a step has."""
    name, wanted = products_of(kernel)
    holding = [loop for loop in found if sass.count(loop.own, name) == wanted]
    return min(holding, key=lambda loop: len(loop.instructions), default=None)


def _tile(arch: str, kernel: Kernel, code: Sequence[Instruction]) -> list[str]:
    if not has_body(arch, kernel):
        return ["has a body"] if sass.count(code, "LDS", "LDSM", "STG") else []
    name, wanted = products_of(kernel)
    loop = find_products(kernel, sass.loops(code))
    if loop is None:
        return [f"no loop of {wanted} {name}"]
    found, wanted_copies = [], copies_of(kernel)
    if int(re.sub(r"\D", "", arch)) >= 80:
        # The first stages are copied before the loop over stages, the others in it.
        copies = sass.count(code, "LDGSTS", width=ACCESS)
        if copies != 2 * wanted_copies:
            found.append(f"{copies} asynchronous copies of 16 bytes, not {2 * wanted_copies}")
        if sass.narrower(code, "LDGSTS", ACCESS):
            found.append("asynchronous copies below 16 bytes")
    elif sass.count(code, "LD", "LDG", width=ACCESS) < 2 * wanted_copies:
        found.append(f"fewer than {2 * wanted_copies} loads of 16 bytes")
    issued = [i for i in loop.own if i.name != "NOP"]
    if name == "HMMA":
        if wanted * MMA_CYCLES < MMA_BUSY.get(kernel.engine, 1.0) * len(issued):
            found.append(f"{len(issued)} instructions for {wanted} {name} leave tensor cores idle")
        fragments = {"kMma16": 8, "kTf32x3": 4}.get(kernel.engine, 0)
        if sass.count(loop.own, "LDSM") != fragments:
            found.append(f"{sass.count(loop.own, 'LDSM')} LDSM, not {fragments}")
        return found
    share = wanted / len(issued)
    if kernel.engine == "kBits":
        if wanted * POPC_CYCLES < len(issued):
            found.append(f"{len(issued)} instructions for {wanted} {name} leave their unit idle")
    elif share < MIN_SHARE[kernel.storage]:
        found.append(
            f"{name} is {share:.0%} of the main loop, below {MIN_SHARE[kernel.storage]:.0%}"
        )
    width = ACCESS // 2 if kernel.storage in WIDENED else ACCESS
    if sass.count(loop.own, "LDS", width=width) != 16 or sass.narrower(loop.own, "LDS", width):
        found.append(f"not 16 shared loads of {width} bytes in the main loop")
    return found


# --- pairs computed directly ----------------------------------------------------------------------

#: Steps of 16 dimensions whose loads are under way together, and the loads of 4 elements of a row:
#: how many and of how many bytes. Bits come 16 bytes at a time, without steps. Queries of 16-bit
#: rows are float.
STEPS = {"float": 4, "Half": 4, "BFloat16": 4, "double": 2, "Bits": 1}
ROW_LOADS = {
    "float": (1, 16),
    "Half": (1, 8),
    "BFloat16": (1, 8),
    "double": (2, 16),
    "Bits": (1, 16),
}


def _direct(kernel: Kernel, code: Sequence[Instruction]) -> list[str]:
    """A loop that loads a row and its queries in the widest accesses, and nothing else."""
    each, width = ROW_LOADS[kernel.storage]
    per_query = 2 if kernel.storage == "double" else 1
    wanted = {width: STEPS[kernel.storage] * each}
    wanted[ACCESS] = wanted.get(ACCESS, 0) + STEPS[kernel.storage] * per_query * kernel.queries
    for loop in sass.loops(code):
        found = {w: sass.count(loop.own, "LDG", width=w) for w in wanted}
        if found == wanted and sass.count(loop.own, "LDG") == sum(wanted.values()):
            return []
    return [f"no loop of loads of {wanted} bytes alone"]
