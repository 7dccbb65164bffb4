"""Gates on compiled CUDA code, which need no GPU; each is shown to fail on a planted fault.

Static: the machine code in the installed extension, for every architecture in it (tests/gates/sass
and kernels). Emulated: sectors, bank conflicts and launches per operator (tests/gates/traffic).
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, ONE_EACH, Case
from emulation import extension
from gates import kernels, sass, traffic

import siamcuda
from siamcuda import _ops

BUILD = siamcuda.build_info()
ARCHITECTURES = [
    "sm_" + text.removesuffix("+PTX").replace(".", "") for text in BUILD["cuda_architectures"]
]
NAME = "_ZN8siamcuda4cuda11rows_kernelINS_4math9SquaredL2ENS2_4PairINS2_17SquaredDifferenceEEE{}EEv"
TILE = "_ZN8siamcuda4cuda11tile_kernelILNS_4math10TileEngineE{}NS0_9StoreSinkI{}EEEEvNS0_8TileArgsE"
GRADIENT, FORWARD, UNALIGNED = (NAME.format(f"fLb{a}ELb{g}E") for a, g in ("11", "10", "01"))

# --- the analyser, on planted listings ------------------------------------------------------------


def listing(text: str, symbol: str = GRADIENT) -> list[sass.Instruction]:
    """The short form of planted/*.sass as nvdisasm prints it, read back."""
    lines, address = [f".text.{symbol}:"], 0
    text = re.sub(r"`\((\w+)\)", r"`(.L_\1)", text)
    for line in text.splitlines():
        if not line.strip() or line.startswith("//"):
            continue
        if line.endswith(":"):
            lines.append(f".L_{line}")
            continue
        lines.append(f"        /*{address:04x}*/  {line} ;")
        address += 16
    return sass.parse_listing("\n".join(lines))[symbol]


@pytest.fixture
def planted() -> str:
    return (Path(__file__).parent / "gates" / "planted" / "rows.sass").read_text()


def complaints(code: list[sass.Instruction], symbol: str = GRADIENT) -> list[str]:
    return kernels.code_complaints("sm_00", kernels.describe(symbol), code)


def test_sound_listing_has_no_complaint(planted: str) -> None:
    assert complaints(listing(planted)) == []


def test_loops_are_found(planted: str) -> None:
    code = listing(planted)
    found = sass.loops(code)
    by_address = {i.address: i for i in code}
    headers = [by_address[loop.header].opcode for loop in found]
    # tiles, rows, the rest of the sum, the shuffles, the sum in double, the rest of the gradient;
    # the padding's own loop is unreachable, and what went out of line is where it returns to.
    assert headers == ["MOV", "ISETP.NE.AND", "LDG.E.128", "BRA.DIV", "LDG.E", "LDG.E.128"]
    assert [loop.innermost for loop in found] == [False, False, True, True, True, True]
    assert sass.count(found[3].own, "SHFL") == 2
    assert [sass.is_accumulation(loop) for loop in found[2:]] == [True, False, True, True]
    cold = [kernels.is_rescue(loop, kernels.describe(GRADIENT)) for loop in found]
    assert cold == [False, False, False, False, True, False]
    assert found[1].own != found[1].instructions
    # A load that only a switch reaches belongs to the loop over rows.
    assert sass.count(found[1].own, "LDG", width=1) == 1


def test_summing_stretch(planted: str) -> None:
    found = sass.loops(listing(planted))
    row_loop = kernels.find_row_loop(found)
    assert row_loop is found[1]
    summing = kernels.find_summing(found, row_loop)
    assert summing is not None
    assert summing.loads == 8
    assert summing.code[0].opcode == summing.code[7].opcode == "LDG.E.128"
    assert summing.code[-1].opcode == "BRA"
    assert summing.bytes_per_slot == 8 * 512 / 13


NARROW = "        LDG.E {0}, [R2.64]\n        LDG.E {0}, [R2.64+0x4]\n"
SPLIT = "        STG.E [R60.64], R36\n" * 4
FAULTS = [
    ("local_memory", "        MOV R10, RZ", "        STL [R1], R10", "1 accesses of local memory"),
    ("narrow_rest", "        LDG.E.128 R52", "        LDG.E.64 R52", "has loads below 16 bytes"),
    ("one_input", "        LDG.E.128 R56, [R4.64]\n", "", "does not load all 2 inputs alike"),
    ("narrow_held", "@!P2    LDG.E.128 R36, [R2.64+0x100]\n", NARROW.format("R36"), "7 loads"),
    ("late_held", "@!P3    LDG.E.128 R48, [R4.64+0x180]\n", "", "7 loads of 16 bytes are held"),
    ("split_store", "        STG.E.128 [R60.64+0x100], R36\n", SPLIT, "7 stores of 16 bytes"),
    ("scalar_stores", "        STG.E.64 [R66.64], R10\n", SPLIT * 3, "13 stores below 16 bytes"),
    (
        "scalar_loads",
        "        LDG.E R17",
        NARROW.format("R9") * 7 + "        LDG.E R17",
        "17 loads",
    ),
    (
        "narrow_write",
        "        STG.E.128 [R60.64], R52",
        "        STG.E [R60.64], R52",
        "has stores",
    ),
    ("warm_narrow", "        DADD", "        FADD", "has loads below 16 bytes"),
    ("slow", "        FADD R28", "        FADD R9, R9, R9\n" * 600 + "        FADD R28", "slot"),
]


@pytest.mark.parametrize(
    ("old", "new", "expected"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_fault_is_found(planted: str, old: str, new: str, expected: str) -> None:
    faulty = planted.replace(old, new, 1)
    assert faulty != planted
    found = complaints(listing(faulty))
    assert any(expected in text for text in found), found


def test_missing_loops_are_found(planted: str) -> None:
    """Not to recognise a main loop is no reason to pass."""
    without_sum = planted.replace("@!P5    BRA `(sum_rest)\n", "")
    without_any = without_sum.replace("@!P5    BRA `(write_rest)\n", "")
    assert complaints(listing(without_any)) == [
        f"sm_00 {kernels.describe(GRADIENT)}: no loop over rows with a loop of accesses in it"
    ]
    assert complaints(listing(without_sum)) != []
    without_held = re.sub(r"@!P\d    LDG.E.128.*\n", "", planted)
    assert any("no 16-byte loads that are held" in t for t in complaints(listing(without_held)))


def test_gradient_stores_in_a_forward_kernel_are_found(planted: str) -> None:
    found = complaints(listing(planted, FORWARD), FORWARD)
    assert any("in a kernel without gradients" in text for text in found), found


def test_wide_access_in_an_unaligned_kernel_is_found(planted: str) -> None:
    found = complaints(listing(planted, UNALIGNED), UNALIGNED)
    assert any("would fault" in text for text in found), found


def test_names_are_read() -> None:
    half = (
        "_ZN8siamcuda4cuda11rows_kernelINS_4math17TripletMarginLossENS2_11TripletSwapINS2_"
        "7ShiftedINS2_17SquaredDifferenceEEEEENS2_4HalfELb1ELb0EEEvNS_7RowArgsENT_6ParamsENS0_"
        "9RowLaunchE"
    )
    kernel = kernels.describe(half)
    assert str(kernel) == (
        "rows_kernel<TripletMarginLoss, TripletSwap<SquaredDifference>, Half, True, False>"
    )
    assert (kernel.inputs, kernel.blocks, kernel.held) == (3, 3, True)
    assert str(kernels.describe(UNALIGNED)).endswith("Pair<SquaredDifference>, float, False, True>")
    second = kernels.describe(
        "_ZN8siamcuda4cuda27rows_double_backward_kernelINS_4math16CosineSimilarityENS2_8Products"
        "EdEEvNS_7RowArgsENT_6ParamsENS0_9RowLaunchE"
    )
    assert str(second) == "rows_double_backward_kernel<CosineSimilarity, Products<>, double>"
    assert kernels.describe("_ZN8siamcuda4cuda13reduce_kernelILi0EEEv").family == "reduce_kernel"
    tile = kernels.describe(TILE.format("0EfLb1E", "f"))
    assert str(tile) == "tile_kernel<kFma32, float, True>"
    assert tile.blocks == 2
    tile = kernels.describe(TILE.format("2ENS2_8BFloat16ELb0E", "S4_"))
    assert str(tile) == "tile_kernel<kMma16, BFloat16, False>"
    assert tile.blocks == 4


# --- tile kernels, on made-up listings ------------------------------------------------------------


def tile_listing(symbol: str, copies: int, inside: dict[str, int]) -> list[sass.Instruction]:
    """Copies, a loop over stages, in it copies again and the loop of products, and stores."""
    copy = ["LDGSTS.E.BYPASS.128 [R2], [R4.64]"] * copies
    body = [f"{name} R0, R1, R2" for name, number in inside.items() for _ in range(number)]
    lines = [*copy, "stages:", *copy, "products:", *body, "@P0 BRA `(products)"]
    lines += ["@P1 BRA `(stages)", "STG.E [R2.64], R0", "EXIT"]
    return listing("\n".join(lines), symbol)


FMA, MMA = TILE.format("0EfLb0E", "f"), TILE.format("3EfLb0E", "f")
SOUND_FMA = {"FFMA": 256, "LDS.128": 16, "IADD3": 8}
SOUND_MMA = {"HMMA.1688.F32.TF32": 24, "LDSM.16.M88.4": 4, "FADD": 120, "NOP": 999}
TILES = [
    ("fma", FMA, 6, SOUND_FMA, ""),
    ("mma", MMA, 3, SOUND_MMA, ""),
    ("few_copies", FMA, 5, SOUND_FMA, "10 asynchronous copies of 16 bytes, not 12"),
    ("few_products", FMA, 6, SOUND_FMA | {"FFMA": 255}, "no loop of 256 FFMA"),
    ("much_besides", FMA, 6, SOUND_FMA | {"IADD3": 60}, "FFMA is 77% of the main loop"),
    ("narrow_loads", FMA, 6, SOUND_FMA | {"LDS.64": 1}, "not 16 shared loads of 16 bytes"),
    ("spill", FMA, 6, SOUND_FMA | {"LDL": 1}, "1 accesses of local memory"),
    ("idle_tensor_cores", MMA, 3, SOUND_MMA | {"FADD": 352}, "leave tensor cores idle"),
    ("plain_operands", MMA, 3, SOUND_MMA | {"LDSM.16.M88.4": 3}, "3 LDSM, not 4"),
]


@pytest.mark.parametrize(
    ("symbol", "copies", "inside", "expected"), [t[1:] for t in TILES], ids=[t[0] for t in TILES]
)
def test_tile_loops_are_judged(
    symbol: str, copies: int, inside: dict[str, int], expected: str
) -> None:
    code = tile_listing(symbol, copies, inside)
    found = kernels.code_complaints("sm_80", kernels.describe(symbol), code)
    assert any(expected in text for text in found) if expected else found == []


BITS = TILE.format("5ENS2_4BitsELb0E", "S4_")
SOUND_BITS = {"POPC": 192, "LDS.128": 16, "LOP3.LUT": 500, "IADD3": 200}


def test_counts_of_bits_are_judged() -> None:
    kernel = kernels.describe(BITS)
    assert (str(kernel), kernel.blocks) == ("tile_kernel<kBits, Bits, False>", 3)

    def found(**changes: int) -> list[str]:
        code = tile_listing(BITS, 6, SOUND_BITS | changes)
        return kernels.code_complaints("sm_80", kernel, code)

    assert found() == []
    assert "no loop of 192 POPC" in found(POPC=256)[0]
    assert "leave their unit idle" in found(IADD3=1500)[0]


DIRECT = "_ZN8siamcuda4cuda11scan_kernelI{}EEvNS0_10ScreenArgsEb"


@pytest.mark.parametrize(
    ("element", "name", "wide", "narrow"),
    [
        ("fLi1E", "scan_kernel<float, 1>", 8, 0),
        ("fLi4E", "scan_kernel<float, 4>", 20, 0),
        ("dLi1E", "scan_kernel<double, 1>", 8, 0),
        ("NS_4math4HalfELi4E", "scan_kernel<Half, 4>", 16, 4),
        ("NS_4math4BitsELi1E", "scan_kernel<Bits, 1>", 2, 0),
    ],
)
def test_loads_of_direct_pairs_are_judged(element: str, name: str, wide: int, narrow: int) -> None:
    symbol = DIRECT.format(element)
    kernel = kernels.describe(symbol)
    assert (str(kernel), kernel.blocks) == (name, 4)

    def found(wide: int, narrow: int, besides: str = "") -> list[str]:
        loads = ["LDG.E.128 R4, [R2.64]"] * wide + ["LDG.E.64 R4, [R2.64]"] * narrow
        lines = ["dims:", *loads, besides, "FFMA R0, R4, R4, R0", "@P0 BRA `(dims)", "EXIT"]
        code = listing("\n".join(lines), symbol)
        return kernels.code_complaints("sm_80", kernel, code)

    assert found(wide, narrow) == []
    assert "no loop of loads" in found(wide - 1, narrow)[0]
    assert "no loop of loads" in found(wide, narrow, "LDG.E R4, [R2.64]")[0]


def test_tile_kernels_without_a_body() -> None:
    tensor, widened = (
        kernels.describe(MMA),
        kernels.describe(TILE.format("0ENS2_4HalfELb0E", "S4_")),
    )
    empty = listing("EXIT\n", MMA)
    full = tile_listing(MMA, 3, SOUND_MMA)
    assert kernels.code_complaints("sm_75", tensor, empty) == []
    assert kernels.code_complaints("sm_80", widened, empty) == []
    assert "no loop of 24 HMMA" in kernels.code_complaints("sm_80", tensor, empty)[0]
    assert "has a body" in kernels.code_complaints("sm_75", tensor, full)[0]


USAGE = """
Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function {}:
  REG:{} STACK:{} SHARED:32 LOCAL:{} CONSTANT[0]:880 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.mark.parametrize(
    ("symbol", "registers", "stack", "local", "expected"),
    [
        (GRADIENT, 128, 0, 0, None),
        (GRADIENT, 129, 0, 0, "129 registers, launch bounds allow 128"),
        (GRADIENT, 128, 8, 0, "8 bytes of stack"),
        (GRADIENT, 128, 0, 4, "4 of local memory"),
        ("_ZN8siamcuda4cuda12panel_kernelIfEEv", 10, 0, 0, "no rule knows this kernel"),
        ("_Z11rows_kernelIfEEv", 10, 0, 0, "no rule knows this kernel"),
    ],
)
def test_usage_is_judged(
    symbol: str, registers: int, stack: int, local: int, expected: str | None
) -> None:
    [usage] = sass.parse_usage(USAGE.format(symbol, registers, stack, local))
    assert (usage.arch, usage.kernel, usage.shared) == ("sm_80", symbol, 32)
    found = kernels.usage_complaints(usage)
    assert found == [] if expected is None else expected in found[0]


# --- the installed extension ----------------------------------------------------------------------


def _absent(reason: str) -> Any:
    """CI builds with SIAMCUDA_CUDA=1, where nothing may be missing."""
    if os.environ.get("SIAMCUDA_CUDA") == "1":
        pytest.fail(f"SIAMCUDA_CUDA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def binary() -> Path:
    if not BUILD["cuda"]:
        _absent("siamcuda was built without CUDA")
    try:
        sass.find_tool("cuobjdump")
        sass.find_tool("nvdisasm")
    except sass.ToolError as error:
        _absent(str(error))
    return Path(siamcuda._C.__file__)


@pytest.fixture(scope="session")
def usage(binary: Path) -> list[sass.Usage]:
    return [u for u in sass.resource_usage(binary) if "siamcuda" in u.kernel]


@pytest.fixture(scope="session")
def cubins(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    return sass.extract(binary, tmp_path_factory.mktemp("cubins"))


def test_extension_holds_every_architecture(usage: list[sass.Usage]) -> None:
    assert sorted({u.arch for u in usage}) == sorted(ARCHITECTURES)
    by_arch = {arch: {u.kernel for u in usage if u.arch == arch} for arch in ARCHITECTURES}
    assert len({frozenset(names) for names in by_arch.values()}) == 1
    names = [kernels.describe(name) for name in by_arch[ARCHITECTURES[0]]]
    rows = [k for k in names if k.family == "rows_kernel"]
    second = [k for k in names if k.family == "rows_double_backward_kernel"]
    # Aligned or not, with gradients or without; the general norm has no aligned kernels.
    assert len(rows) == sum(4 if kernel.held else 2 for kernel in second) > 0
    assert {k.storage for k in rows} == {"Half", "BFloat16", "float", "double"}


def test_no_spills_and_registers_within_bounds(usage: list[sass.Usage]) -> None:
    assert [text for u in usage for text in kernels.usage_complaints(u)] == []


def _judge(arch: str, cubin: Path, aligned: bool) -> tuple[int, list[str]]:
    chosen = {}
    for symbol, number in sass.kernels_of(cubin.read_bytes()).items():
        kernel = kernels.describe(symbol)
        if kernel.family == "rows_kernel" and kernel.aligned == aligned:
            chosen[symbol] = number
    found = []
    for symbol, code in sass.disassemble(cubin, chosen).items():
        found += kernels.code_complaints(arch, kernels.describe(symbol), code)
    return len(chosen), found


MULTIPLYING = ("tile_kernel", "product_kernel", "product_tensor_kernel", *kernels.DIRECT)


@pytest.mark.parametrize("arch", ARCHITECTURES or ["none"])
def test_main_loops_of_tile_kernels(
    usage: list[sass.Usage], cubins: list[tuple[str, Path]], arch: str
) -> None:
    found, judged = [], 0
    for path in [path for name, path in cubins if name == arch]:
        symbols = sass.kernels_of(path.read_bytes()).items()
        tiles = {s: n for s, n in symbols if kernels.describe(s).family in MULTIPLYING}
        judged += len(tiles)
        for symbol, code in sass.disassemble(path, tiles).items():
            found += kernels.code_complaints(arch, kernels.describe(symbol), code)
    mine = [u for u in usage if u.arch == arch]
    assert judged == sum(kernels.describe(u.kernel).family in MULTIPLYING for u in mine) > 0
    assert found == []


@pytest.mark.parametrize("arch", ARCHITECTURES or ["none"])
def test_main_loops_of_aligned_kernels(
    usage: list[sass.Usage], cubins: list[tuple[str, Path]], arch: str
) -> None:
    mine = [path for name, path in cubins if name == arch]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        judged = list(pool.map(lambda path: _judge(arch, path, aligned=True), mine))
    expected = [u for u in usage if u.arch == arch and kernels.describe(u.kernel).aligned]
    assert sum(number for number, _ in judged) == len(expected) > 0
    assert [text for _, found in judged for text in found] == []


def test_unaligned_kernels_have_no_wide_access(cubins: list[tuple[str, Path]]) -> None:
    """On one architecture: which access a kernel asks for is decided before that."""
    mine = [path for name, path in cubins if name == ARCHITECTURES[0]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        judged = list(pool.map(lambda path: _judge(ARCHITECTURES[0], path, aligned=False), mine))
    assert sum(number for number, _ in judged) > 0
    assert [text for _, found in judged for text in found] == []


# --- traffic, on the emulator ---------------------------------------------------------------------

ROWS = 70  # more than a tile, and not a multiple of what a block steps over
SHAPES = [
    (torch.float32, 128),
    (torch.float32, 512),
    (torch.float16, 128),
    (torch.bfloat16, 128),
    (torch.float64, 64),
]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "extension", extension.load())
    monkeypatch.setattr(_ops, "namespace", torch.ops.siamcuda_emulated)


def _steps(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype, reduction: str, upstream: float = 1.0
) -> tuple[list[traffic.Launch], list[traffic.Launch]]:
    """The launches of the forward pass and of the backward pass."""
    tensors, target = case.make(shape, dtype)
    with traffic.recorded() as forward:
        loss = case.function(*case.arguments(tensors, target), **case.keywords(reduction))
    with traffic.recorded() as backward:
        torch.autograd.grad(loss, tensors, torch.full_like(loss, upstream))
    return forward, backward


def _made_in_forward(case: Case, reduction: str, dtype: torch.dtype) -> bool:
    """See Note [Gradients made in forward] in csrc/ops/loss_op.h."""
    reduced = reduction != "none" and case.reductions != ("none",)
    return reduced and dtype in (torch.float32, torch.float64)


def _elementwise(case: Case) -> bool:
    return any(
        case.name == name and case.options.get(option, usual[0]) not in usual
        for name, option, usual, _ in traffic.ELEMENTWISE
    )


@pytest.mark.parametrize(("dtype", "columns"), SHAPES, ids=lambda x: str(x).removeprefix("torch."))
@pytest.mark.parametrize("case", [c for c in CASES if not _elementwise(c)], ids=lambda c: c.id)
@pytest.mark.usefixtures("emulated")
def test_full_sectors_and_no_conflicts(case: Case, dtype: torch.dtype, columns: int) -> None:
    forward, backward = _steps(case, (ROWS, columns), dtype, "sum")
    for launch in [*forward, *backward]:
        assert launch.sites
        assert traffic.complaints(launch) == []
    once = case.inputs * ROWS * columns * dtype.itemsize // traffic.SECTOR
    made = _made_in_forward(case, "sum", dtype)
    assert forward[0].sectors("global_load") == once
    assert forward[0].sectors("global_store") == (once if made else 0)
    assert backward[0].sectors("global_load") == (0 if made else once)
    assert backward[0].sectors("global_store") == (0 if made else once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [c for c in ONE_EACH if "sum" in c.reductions], ids=lambda c: c.id)
@pytest.mark.usefixtures("emulated")
def test_gradients_are_scaled_in_full_sectors(case: Case, dtype: torch.dtype) -> None:
    _, [launch] = _steps(case, (ROWS, 128), dtype, "sum", upstream=0.5)
    once = case.inputs * ROWS * 128 * dtype.itemsize // traffic.SECTOR
    assert traffic.complaints(launch) == []
    assert launch.sectors("global_load") == launch.sectors("global_store") == once


@pytest.mark.parametrize("case", [c for c in CASES if _elementwise(c)], ids=lambda c: c.id)
@pytest.mark.usefixtures("emulated")
def test_elementwise_kernels_need_their_exemption(case: Case) -> None:
    forward, backward = _steps(case, (ROWS, 128), torch.float32, "sum")
    found = [text for launch in [*forward, *backward] for text in traffic.complaints(launch)]
    assert any("would do" in text for text in found)
    assert not any("bank conflict" in text for text in found)
    assert forward[0].sectors("global_load") == 0


@pytest.mark.usefixtures("emulated")
def test_what_is_not_held_is_read_twice() -> None:
    """4 accesses of 32 lanes hold 512 floats of a row; the header of rows.cuh says so."""
    case = next(c for c in CASES if c.name == "squared_l2")
    [forward], [backward] = _steps(case, (ROWS, 1024), torch.float32, "none")
    row = 2 * ROWS * 1024 * 4 // traffic.SECTOR
    assert forward.sectors("global_load") == row
    assert backward.sectors("global_load") == row + row // 2
    assert backward.sectors("global_store") == row


@pytest.mark.usefixtures("emulated")
def test_unaligned_rows_are_complained_about() -> None:
    """The gate can fail: rows that begin between sectors touch more of them."""
    case = next(c for c in CASES if c.name == "squared_l2")
    x1, x2 = (torch.randn(ROWS, 129)[:, 1:] for _ in range(2))
    with traffic.recorded() as launches:
        case.function(x1, x2)
    [launch] = launches
    assert launch.sectors("global_load") == 0
    assert any("would do" in text for text in traffic.complaints(launch))


def test_conflicts_and_sectors_are_judged() -> None:
    def launch(**changes: Any) -> traffic.Launch:
        site = {"kind": "shared_load", "file": "x.cuh", "line": 1, "bytes": 4, "requests": 1,
                "sectors": 0, "ideal_sectors": 0, "max_conflict": 1} | changes  # fmt: skip
        return traffic.Launch("k<T>", (1, 1, 1), (32, 1, 1), (traffic.Site(**site),))

    assert traffic.complaints(launch()) == []
    assert "2-way bank conflict" in traffic.complaints(launch(max_conflict=2))[0]
    partly = launch(kind="global_load", sectors=5, ideal_sectors=4)
    assert "5 sectors where 4 would do" in traffic.complaints(partly)[0]
    allowed = traffic.Exemption("k", "global_load", 4, "a test")
    assert traffic.complaints(partly, [allowed]) == []
    assert traffic.complaints(partly, [traffic.Exemption("j", "global_load", 4, "")]) != []


@pytest.mark.usefixtures("emulated")
def test_exemptions_are_still_needed() -> None:
    case = next(c for c in CASES if c.name == "contrastive_loss")
    forward, _ = _steps(case, (1000, 16), torch.float32, "sum")
    found = [text for launch in forward for text in traffic.complaints(launch, [])]
    for exemption in traffic.EXEMPTIONS:
        where = f"{exemption.kind} of {exemption.bytes} bytes"
        assert any(exemption.kernel in text and where in text for text in found), exemption


# --- kernels per operator -------------------------------------------------------------------------

PER_OPERATOR = [
    pytest.param(case, reduction, id=f"{case.name}-{reduction}")
    for case in ONE_EACH
    for reduction in case.reductions
]


def _names(launches: list[traffic.Launch]) -> list[str]:
    return [launch.name for launch in launches]


@pytest.mark.parametrize("shape", [(ROWS, 33), (2, 3, 16)], ids=str)
@pytest.mark.parametrize(("case", "reduction"), PER_OPERATOR)
@pytest.mark.usefixtures("emulated")
def test_kernels_per_operator(case: Case, reduction: str, shape: tuple[int, ...]) -> None:
    reduce = [] if reduction == "none" else ["reduce_kernel"]
    forward, backward = _steps(case, shape, torch.float32, reduction)
    made = _made_in_forward(case, reduction, torch.float32)
    assert _names(forward) == ["rows_kernel", *reduce]
    assert _names(backward) == ["scale_kernel" if made else "rows_kernel"]

    tensors, target = case.make(shape, torch.float32, requires_grad=False)
    with traffic.recorded() as both:
        case.value_and_grad(*case.arguments(tensors, target), **case.keywords(reduction))
    assert _names(both) == ["rows_kernel", *reduce]

    tensors, target = case.make(shape, torch.float32)
    loss = case.function(*case.arguments(tensors, target), **case.keywords(reduction))
    upstream = torch.ones_like(loss, requires_grad=True)
    gradients = torch.autograd.grad(loss, tensors, upstream, create_graph=True)
    with traffic.recorded() as second:
        torch.autograd.grad(
            gradients, [*tensors, upstream], [torch.ones_like(g) for g in gradients]
        )
    assert _names(second) == ["rows_double_backward_kernel", *reduce]


@pytest.mark.parametrize(("case", "reduction"), PER_OPERATOR)
@pytest.mark.usefixtures("emulated")
def test_empty_batch_launches_no_row_kernel(case: Case, reduction: str) -> None:
    forward, backward = _steps(case, (0, 16), torch.float32, reduction)
    assert _names(forward) == ([] if reduction == "none" else ["reduce_kernel"])
    assert _names(backward) == []


@pytest.mark.usefixtures("emulated")
def test_launch_shapes_reach_the_kernel() -> None:
    """What row_launch decides is what is launched: a bounded grid of blocks of one size."""
    case = next(c for c in CASES if c.name == "squared_l2")
    [launch], _ = _steps(case, (5000, 4), torch.float32, "none")
    assert launch.block == (128, 1, 1)
    assert launch.grid == (32, 1, 1)  # 2 multiprocessors of 16 blocks
