"""bench/gpu_static.py: its arithmetic, and an operator on the emulator."""

from __future__ import annotations

import pytest
from gates import sass, traffic

from bench import gpu_static
from bench.gpu_static import GPUS, Operator, bound, counted, measured, occupancy


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "blocks", "warps"),
    [
        ("sm_90", 64, 0, 128, 8, 0.5),  # registers: 65536 / (64 · 128)
        ("sm_90", 33, 0, 128, 12, 0.75),  # 40 a thread, since a warp gets units of 256
        ("sm_90", 32, 0, 1024, 2, 1.0),
        ("sm_90", 32, 0, 64, 32, 1.0),  # blocks
        ("sm_90", 32, 75 << 10, 128, 3, 3 / 16),  # shared memory: 228 KiB, 76 a block
        ("sm_75", 32, 0, 256, 4, 1.0),  # warps
        ("sm_86", 255, 0, 256, 1, 1 / 6),
    ],
)
def test_occupancy_follows_what_is_scarce(
    arch: str, registers: int, shared: int, threads: int, blocks: int, warps: float
) -> None:
    assert occupancy(arch, registers, shared, threads) == (blocks, pytest.approx(warps))


def test_bounds_are_the_longer_of_two() -> None:
    h100 = GPUS[1]
    many = Operator("pairs", lambda x, y: None, lambda b, d: 4.0 * b * b * d, passes=2)
    seconds, what = bound(h100, many, "float32")
    # 4 · 4096² · 128 operations by three TF32 products
    assert (seconds, what) == (pytest.approx(3 * 4 * 4096**2 * 128 / 494.7e12), "arithmetic")
    few = Operator("rows", lambda x, y: None, lambda b, d: 6.0 * b * d, passes=4, inputs=2)
    seconds, what = bound(h100, few, "bfloat16")
    assert (seconds, what) == (pytest.approx(2 * 4 * 4096 * 128 / 3.35e12), "memory")


def test_accesses_and_tensor_instructions_are_counted() -> None:
    lines = [
        "LDG.E.128 R4, [R2.64]", "LDG.E R4, [R2.64]", "STS.128 [R2], R4", "FFMA R0, R4, R4, R0",
        "HMMA.1688.F32.TF32 R4, R8, R12, R4", "EXIT",
    ]  # fmt: skip
    text = ".text.kernel:\n" + "\n".join(
        f"        /*{16 * i:04x}*/  {line} ;" for i, line in enumerate(lines)
    )
    assert counted(sass.parse_listing(text)["kernel"]) == (2, 1)


def test_what_the_emulator_saw_is_added_up() -> None:
    def site(kind: str, sectors: int, ideal: int, conflict: int) -> traffic.Site:
        return traffic.Site(kind, "a.cuh", 1, 4, 1, sectors, ideal, conflict)

    kinds = ("global_load", 8, 4, 0), ("shared_load", 0, 0, 3), ("global_store", 2, 2, 0)
    sites = tuple(site(*kind) for kind in kinds)
    launches = [traffic.Launch("one_kernel<T>", (1, 1, 1), (32, 1, 1), sites)]
    assert measured(launches) == (320, 192, "3-way, one_kernel")
    assert measured([]) == (0, 0, "none")


def test_an_operator_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [one for one in gpu_static.operators() if one.name == "contrastive_loss"]
    monkeypatch.setattr(gpu_static, "operators", lambda: chosen)
    rows = gpu_static.operator_table()
    assert len(rows) == 4
    # Inputs and gradients of 256 x 128 once each: 512 KiB, and little else.
    assert rows[2].startswith("| contrastive_loss | float32 | 3 | 518 | 518 | none |")
