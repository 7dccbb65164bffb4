"""The case table: one entry per operator, and with it the whole suite.

An entry says how to make inputs, which plain PyTorch function is the oracle, and which option sets
to try. Values, gradients, dtypes, layouts, compile, opcheck, and every backend (generic, AVX2,
AVX-512, emulated CUDA, CUDA) are driven from here. test_table.py fails if an operator lacks an
entry. To cover a new loss, add its entry; nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import siamcuda
from siamcuda import reference

SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 129, 1021)


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator with one set of options."""

    name: str
    inputs: int
    has_target: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    reductions: tuple[str, ...] = ("none", "sum", "mean")
    #: Inputs are drawn with this standard deviation, so that hinges and exponentials matter.
    scale: float = 1.0
    #: The formula has kinks or poles where a finite difference may land.
    smooth: bool = True
    #: Largest error relative to the largest entry, over what rounding of inputs would explain.
    slack: float = 1.0
    #: Size of the terms that a gradient is the difference of, where they can cancel.
    gradient_terms: Callable[[list[Tensor]], float] = lambda tensors: 0.0

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(siamcuda, self.name)

    @property
    def value_and_grad(self) -> Callable[..., Any]:
        return getattr(siamcuda.value_and_grad, self.name)

    @property
    def reference(self) -> Callable[..., Tensor]:
        return getattr(reference, self.name)

    def keywords(self, reduction: str) -> dict[str, Any]:
        if self.reductions == ("none",):
            return dict(self.options)
        return {**self.options, "reduction": reduction}

    def make(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        seed: int = 0,
        requires_grad: bool = True,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Inputs of ``shape`` (..., D) and, if the loss has one, a target."""
        generator = torch.Generator().manual_seed(seed)
        tensors = []
        for _ in range(self.inputs):
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            x = (x * self.scale / max(shape[-1], 1) ** 0.5).to(dtype).to(device)
            tensors.append(x.requires_grad_(requires_grad))
        target = None
        if self.has_target:
            target = torch.randint(0, 2, shape[:-1], generator=generator).to(device)
        return tensors, target

    def arguments(self, tensors: list[Tensor], target: Tensor | None) -> list[Tensor]:
        return tensors + ([target] if target is not None else [])


def _inverse_norm(tensors: list[Tensor]) -> float:
    norms = torch.cat([t.detach().cpu().double().norm(dim=-1).flatten() for t in tensors])
    return float((1 / norms[norms > 0]).max()) if bool((norms > 0).any()) else 0.0


def _table() -> list[Case]:
    cases = [
        Case("squared_l2", 2, reductions=("none",)),
        Case("cosine_similarity", 2, reductions=("none",), gradient_terms=_inverse_norm),
        Case("contrastive_loss", 2, True, {"margin": 1.5}),
        Case("contrastive_loss", 2, True, {"margin": 0.0}),
        Case("contrastive_loss", 2, True, {"margin": 3.0, "similar_label": 1}),
        Case("chopra_loss", 2, True, {"q": 2.0}),
        Case("chopra_loss", 2, True, {"q": 0.7, "similar_label": 1}),
        Case("chopra_loss", 2, True, {"q": 9.0, "energy": "l1"}, slack=4.0),
    ]
    for options in (
        {"margin": 0.2},
        {"margin": 2.0},
        {"margin": 0.5, "squared": False},
        {"soft": True},
        {"soft": True, "squared": False},
    ):
        cases.append(Case("triplet_loss", 3, options=options))
    for p in (2.0, 1.0, 3.0, 1.5, 0.5, 0.0, -1.0, float("inf"), float("-inf")):
        for swap in (False, True):
            cases.append(
                Case(
                    "triplet_margin_loss",
                    3,
                    options={"p": p, "swap": swap},
                    smooth=p in (2.0, 3.0, 1.5),
                    slack=1.0 if p in (2.0, 1.0) else 8.0,
                )
            )
    cases.append(Case("triplet_margin_loss", 3, options={"margin": 0.3, "eps": 0.01, "swap": True}))
    return cases


CASES = _table()
#: One case per operator, for what does not depend on options.
ONE_EACH = list({case.name: case for case in reversed(CASES)}.values())
SMOOTH = [case for case in CASES if case.smooth]


@dataclasses.dataclass(frozen=True)
class BatchCase:
    """One loss over a batch with one set of options."""

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    #: Largest error relative to the largest entry, over what rounding of distances would explain.
    slack: float = 1.0

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(siamcuda, self.name)

    @property
    def reference(self) -> Callable[..., Tensor]:
        return getattr(reference, self.name)

    def make(
        self,
        rows: int,
        columns: int,
        dtype: torch.dtype = torch.float64,
        refs: int | None = None,
        classes: int = 4,
        seed: int = 0,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Embeddings (and ref rows) that need gradients, and the labels of each."""
        generator = torch.Generator().manual_seed(seed)
        embeddings, labels = [], []
        for n in (rows,) if refs is None else (rows, refs):
            x = torch.randn(n, columns, generator=generator, dtype=torch.float64)
            x = (x / max(columns, 1) ** 0.5).to(dtype)
            embeddings.append(x.requires_grad_())
            # Classes that are no row numbers, and one in ref that no row has.
            label = torch.randint(0, classes + len(labels), (n,), generator=generator)
            labels.append(label * 1000 - 1500)
        return embeddings, labels

    def call(
        self, function: Callable[..., Any], x: list[Tensor], y: list[Tensor], **options: Any
    ) -> Any:
        refs = {} if len(x) == 1 else {"ref_embeddings": x[1], "ref_labels": y[1]}
        return function(x[0], y[0], **refs, **{**self.options, **options})


BATCH_CASES = [
    BatchCase("batch_contrastive_loss"),
    BatchCase("batch_contrastive_loss", {"margin": 2.0}),
    BatchCase("batch_chopra_loss"),
    BatchCase("batch_chopra_loss", {"q": 9.0, "energy": "l1"}, slack=4.0),
    *(
        BatchCase("batch_triplet_loss", {"mining": mining, "squared": squared, "soft": soft})
        for mining in ("all", "hard", "semihard", "easy_positive")
        for squared in (True, False)
        for soft in (False, True)
    ),
]


def exact(
    case: Case, tensors: list[Tensor], target: Tensor | None, reduction: str, upstream: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of the oracle, in float64 on the CPU, for the given upstream gradient."""
    wide = [t.detach().cpu().double().requires_grad_() for t in tensors]
    label = None if target is None else target.cpu()
    value = case.reference(*case.arguments(wide, label), **case.keywords(reduction))
    if not value.requires_grad:  # the norm of order 0 has no graph
        return value, [torch.zeros_like(t) for t in wide]
    found = torch.autograd.grad(value, wide, upstream.cpu().double(), allow_unused=True)
    return value.detach(), [
        torch.zeros_like(t) if g is None else g for t, g in zip(wide, found, strict=True)
    ]


#: Unit roundoff of what results are rounded to, and of what they are computed in.
ROUNDING = {
    torch.float64: (2.0**-53, 2.0**-53),
    torch.float32: (2.0**-24, 2.0**-24),
    torch.float16: (2.0**-11, 2.0**-24),
    torch.bfloat16: (2.0**-8, 2.0**-24),
}


def assert_close(
    actual: Tensor, expected: Tensor, case: Case, columns: int, what: str, scale: float = 0.0
) -> None:
    """|actual − expected| ≤ rounding of the result + the error bound of D additions."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    if expected.numel() == 0:
        return
    output, compute = ROUNDING[actual.dtype]
    largest = max(float(expected.abs().max()), scale)
    sums = 16 * case.slack * (columns + 16) * compute * largest
    tiny = torch.finfo(actual.dtype).tiny * 2.0**-8
    error = (actual.detach().cpu().double() - expected).abs()
    bound = 2 * output * expected.abs() + sums + tiny
    worst = int((error - bound).argmax())
    assert bool((error <= bound).all()), (
        f"{what} of {case.id}: got {actual.flatten()[worst]}, expected "
        f"{expected.flatten()[worst]}, error {error.flatten()[worst]:.3g} > "
        f"{bound.flatten()[worst]:.3g}"
    )
