"""Bad input: a clear error that names the argument, before any work is done."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CASES, ONE_EACH

import siamcuda
from siamcuda import _ops

LOSSES = [c for c in ONE_EACH if c.reductions != ("none",)]
LABELLED = [c for c in ONE_EACH if c.has_target]


def names(case):
    schema = getattr(torch.ops.siamcuda, case.name).default._schema
    return [a.name for a in schema.arguments[: case.inputs]]


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_columns_that_differ(case, backend):
    tensors, target = case.make((4, 6), torch.float32, backend.device)
    for j in range(1, case.inputs):
        bad = [t[:, :5] if i == j else t for i, t in enumerate(tensors)]
        with pytest.raises(
            ValueError, match=rf"{names(case)[j]} must have as many columns.*\[4, 5\]"
        ):
            case.function(*case.arguments(bad, target))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_leading_shapes_that_do_not_broadcast(case, backend):
    tensors, target = case.make((4, 6), torch.float32, backend.device)
    bad = [*tensors[:-1], tensors[-1][:3]]
    with pytest.raises(ValueError, match=rf"{names(case)[-1]} can't be broadcast.*\[3, 6\]"):
        case.function(*case.arguments(bad, target))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_scalars_have_no_columns(case, backend):
    tensors, target = case.make((4, 6), torch.float32, backend.device)
    if case.name == "triplet_margin_loss":
        tensors = [t[0, 0] for t in tensors]
    else:
        tensors[1] = tensors[1][0, 0]
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., D\)"):
        case.function(*case.arguments(tensors, target))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_dtypes_that_are_not_floating(case, backend, dtype):
    tensors, target = case.make((4, 6), torch.float32, backend.device, requires_grad=False)
    tensors[1] = tensors[1].to(dtype)
    with pytest.raises(TypeError, match=f"{names(case)[1]} must be float16, bfloat16"):
        case.function(*case.arguments(tensors, target))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_mixed_dtypes(case, backend):
    tensors, target = case.make((4, 6), torch.float32, backend.device)
    tensors[1] = tensors[1].double()
    with pytest.raises(
        TypeError, match=f"{names(case)[1]} must have the dtype of {names(case)[0]}"
    ):
        case.function(*case.arguments(tensors, target))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_devices_that_differ(case):
    tensors, target = case.make((4, 6), torch.float32)
    tensors[1] = tensors[1].to("meta")
    with pytest.raises((ValueError, NotImplementedError), match=r"device|meta"):
        case.function(*case.arguments(tensors, target))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("bad", [None, 1.0, [[1.0, 2.0]], "x"], ids=repr)
def test_arguments_that_are_no_tensors(case, bad):
    tensors, target = case.make((4, 6), torch.float32)
    arguments = case.arguments([tensors[0], bad, *tensors[2:]], target)
    with pytest.raises(TypeError, match=f"{names(case)[1]} must be a Tensor"):
        case.function(*arguments)


@pytest.mark.parametrize("case", LABELLED, ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(4, 1), (1,), (5,), (1, 4), ()], ids=str)
def test_labels_of_another_shape_are_not_broadcast(case, backend, shape):
    tensors, _ = case.make((4, 6), torch.float32, backend.device)
    with pytest.raises(ValueError, match=r"target must have shape \[4\]"):
        case.function(*tensors, torch.zeros(shape, device=backend.device))


@pytest.mark.parametrize("case", LABELLED, ids=lambda c: c.name)
@pytest.mark.parametrize("bad", [2, -1, 0.5, math.nan, math.inf], ids=str)
@pytest.mark.parametrize("rows", [3, 3000])
def test_labels_other_than_0_and_1(case, backend, bad, rows):
    if backend.name in ("emulated", "cuda"):
        pytest.skip("CUDA does not synchronise for labels: see the next test")
    tensors, target = case.make((rows, 40), torch.float32, backend.device)
    target = target.double()
    target[rows - 2] = bad
    target[rows - 1] = bad
    with pytest.raises(ValueError, match=rf"target must hold only 0 and 1, got .* \[{rows - 2}\]"):
        case.function(*tensors, target)
    with pytest.raises(ValueError, match="target must hold only 0 and 1"):
        case.value_and_grad(*tensors, target)


@pytest.mark.parametrize("case", LABELLED, ids=lambda c: c.name)
def test_bad_labels_on_cuda_make_their_row_nan_or_raise_when_asked(case, backend, monkeypatch):
    if backend.name not in ("emulated", "cuda"):
        pytest.skip("the CPU raises: see the test before")
    tensors, target = case.make((5, 6), torch.float32, backend.device)
    target = target.double()
    target[3] = 2
    value = case.function(*tensors, target, reduction="none")
    others = torch.arange(5) != 3
    assert value[3].isnan()
    assert value[others].isfinite().all()
    for g in torch.autograd.grad(value.sum(), tensors):
        assert g[3].isnan().all()
        assert g[others].isfinite().all()
    assert case.function(*tensors, target).isnan()
    monkeypatch.setenv("SIAMCUDA_VALIDATE", "1")
    with pytest.raises(ValueError, match=r"target must hold only 0 and 1, got 2 at index \[3\]"):
        case.function(*tensors, target)


@pytest.mark.parametrize("case", LABELLED, ids=lambda c: c.name)
def test_label_dtype(case):
    tensors, target = case.make((4, 6), torch.float32)
    with pytest.raises(TypeError, match="target must be bool, integer or float"):
        case.function(*tensors, target.to(torch.complex64))
    with pytest.raises(ValueError, match="similar_label must be 0 or 1, got 2"):
        case.function(*tensors, target, similar_label=2)


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
def test_reduction(case, backend):
    tensors, target = case.make((4, 6), torch.float32, backend.device)
    arguments = case.arguments(tensors, target)
    for bad in ("average", "", "Mean"):
        with pytest.raises(ValueError, match=r"reduction must be .*mean.*sum.*none"):
            case.function(*arguments, reduction=bad)
        with pytest.raises(ValueError, match="reduction must be"):
            case.value_and_grad(*arguments, reduction=bad)
    with pytest.raises(TypeError, match="reduction must be a str"):
        case.function(*arguments, reduction=None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("contrastive_loss", {"margin": math.nan}, "margin must be a finite number, got nan"),
        ("contrastive_loss", {"margin": math.inf}, "margin must be a finite number, got inf"),
        ("contrastive_loss", {"margin": -0.5}, "margin must be at least 0, got -0.5"),
        ("chopra_loss", {"q": 0.0}, "q must be greater than 0, got 0"),
        ("chopra_loss", {"q": -1.0}, "q must be greater than 0, got -1"),
        ("chopra_loss", {"q": math.nan}, "q must be a finite number"),
        ("chopra_loss", {"energy": "l3"}, "energy must be 'l1' or 'l2', got 'l3'"),
        ("triplet_loss", {"margin": math.nan}, "margin must be a finite number"),
        ("triplet_loss", {"margin": -1.0}, "margin must be at least 0"),
        ("triplet_margin_loss", {"margin": 0.0}, "margin must be greater than 0, got 0"),
        ("triplet_margin_loss", {"margin": math.nan}, "margin must be a finite number"),
        ("triplet_margin_loss", {"p": math.nan}, "p must be a number, got nan"),
        ("triplet_margin_loss", {"eps": math.inf}, "eps must be a finite number"),
    ],
)
def test_options(backend, name, options, message):
    (case,) = [c for c in ONE_EACH if c.name == name]
    tensors, target = case.make((4, 6), torch.float32, backend.device)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        case.function(*case.arguments(tensors, target), **options)


def test_options_of_another_type():
    x = torch.zeros(2, 3)
    y = torch.zeros(2)
    with pytest.raises(TypeError, match="contrastive_loss: margin must be a float, got str"):
        siamcuda.contrastive_loss(x, x, y, margin="1")
    with pytest.raises(TypeError, match="chopra_loss: energy must be a str, got int"):
        siamcuda.chopra_loss(x, x, y, energy=2)
    with pytest.raises(TypeError, match="triplet_loss: squared must be a bool"):
        siamcuda.triplet_loss(x, x, x, squared="yes")


def test_triplet_margin_loss_wants_equal_ranks_as_torch_does():
    with pytest.raises(ValueError, match="as many dimensions"):
        siamcuda.triplet_margin_loss(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 3))


@pytest.mark.parametrize("value", ["sse9", "AVX2"])
def test_unknown_simd_level(monkeypatch, value):
    monkeypatch.setenv("SIAMCUDA_SIMD", value)
    with pytest.raises(ValueError, match="SIAMCUDA_SIMD must be generic, avx2 or avx512"):
        siamcuda.squared_l2(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_errors_under_compile_are_the_same_checks(case):
    tensors, target = case.make((4, 6), torch.float32)
    operator = getattr(_ops.namespace, case.name)
    bad = [*tensors[:-1], tensors[-1][:, :5]]
    meta = [t.detach().to("meta") for t in bad]
    label = None if target is None else target.to("meta")
    with pytest.raises(ValueError, match="as many columns"):
        operator(*case.arguments(meta, label), **case.options)
