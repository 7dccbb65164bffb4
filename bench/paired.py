"""The paired losses: call overhead, in cache, from memory, and how they scale with the batch.

Peers are written as a careful user would write them, in several ways each; the fastest one of a
family stands for it. Labels are bool for all who select with them and float for those who multiply.
The distances of the random rows are spread over 0.2 to 1.8 with a margin of 1, so that about half
of the impostors are beyond it; gradients are fresh in every step, as after
``zero_grad(set_to_none=True)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import siamcuda
from bench import harness
from bench.harness import Case, Goal, Peer, Task
from siamcuda import reference

SUITE = "paired"
COLUMNS = 128
MARGIN, Q, ALPHA = 1.0, 2.0, 0.2

Function = Callable[..., Any]  # tensors to the loss

#: Modes of torch.compile worth trying on a CPU.
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")


def compile_modes() -> tuple[str, ...]:
    """On a GPU the default mode alone: every compilation takes seconds of a lease."""
    return COMPILE_MODES if harness.device == "cpu" else COMPILE_MODES[:1]


# --- eager PyTorch, as a good user writes it ------------------------------------------------------


def _squares(x1: Tensor, x2: Tensor) -> Tensor:
    return (x1 - x2).square().sum(-1)


def _dots(x1: Tensor, x2: Tensor) -> Any:
    difference = x1 - x2
    return torch.linalg.vecdot(difference, difference)


def _contrastive_where(distance: Function) -> Function:
    def loss(x1: Tensor, x2: Tensor, impostor: Tensor) -> Tensor:
        d = distance(x1, x2)
        return torch.where(impostor, F.relu(MARGIN - d).square(), d.square()).mean()

    return loss


def _contrastive_squares(x1: Tensor, x2: Tensor, impostor: Tensor) -> Tensor:
    s = _squares(x1, x2)
    return torch.where(impostor, F.relu(MARGIN - s.sqrt()).square(), s).mean()


def _contrastive_multiply(x1: Tensor, x2: Tensor, y: Tensor) -> Tensor:
    s = _squares(x1, x2)
    return ((1 - y) * s + y * F.relu(MARGIN - s.sqrt()).square()).mean()


def _chopra_where(distance: Function) -> Function:
    def loss(x1: Tensor, x2: Tensor, impostor: Tensor) -> Tensor:
        e = distance(x1, x2)
        far = 2 * Q * torch.exp(-2.77 / Q * e)
        return torch.where(impostor, far, 2 / Q * e.square()).mean()

    return loss


def _chopra_squares(x1: Tensor, x2: Tensor, impostor: Tensor) -> Tensor:
    s = _squares(x1, x2)
    return torch.where(impostor, 2 * Q * torch.exp(-2.77 / Q * s.sqrt()), 2 / Q * s).mean()


def _triplet(distance: Function) -> Function:
    def loss(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return F.relu(distance(a, p) - distance(a, n) + ALPHA).mean()

    return loss


def _norm(x1: Tensor, x2: Tensor) -> Any:
    return torch.linalg.vector_norm(x1 - x2, dim=-1)


def _l1(x1: Tensor, x2: Tensor) -> Tensor:
    return (x1 - x2).abs().sum(-1)


def _cosine_by_hand(x1: Tensor, x2: Tensor) -> Any:
    return (x1 * x2).sum(-1) / (x1.norm(dim=-1) * x2.norm(dim=-1)).clamp(min=1e-8)


# --- the operations -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One operation: ours, its exact twin, and its peers as {variant: function}."""

    name: str
    inputs: int  # 2: pairs, 3: triplets
    labels: bool
    ours: Function
    exact: Function
    eager: dict[str, Function]
    value_and_grad: Callable[..., Any] | None = None
    overhead_goal: float = 3.0  # forward + backward against eager on tiny tensors


_K: dict[str, Any] = {"margin": MARGIN}
_QL2: dict[str, Any] = {"q": Q}
_QL1: dict[str, Any] = {"q": Q, "energy": "l1"}


def _bind(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    if not options:
        return function
    return lambda *tensors: function(*tensors, **options)


def _op(
    title: str, inputs: int, labels: bool, options: dict[str, Any], eager: dict[str, Function],
    goal: float = 3.0,
) -> Op:  # fmt: skip
    name = title.partition("[")[0]
    return Op(
        title,
        inputs,
        labels,
        _bind(getattr(siamcuda, name), options),
        _bind(getattr(reference, name), options),
        eager,
        _bind(getattr(siamcuda.value_and_grad, name), options),
        goal,
    )


def _pair_eager(build: Callable[[Function], Function], squares: Function) -> dict[str, Function]:
    return {
        "squares": squares,
        "vector_norm": build(_norm),
        "pairwise_distance": build(F.pairwise_distance),
    }


OPS = {
    op.name: op
    for op in (
        _op("squared_l2", 2, False, {}, {"squares": _squares, "vecdot": _dots}, goal=2.0),
        _op(
            "cosine_similarity", 2, False, {},
            {"F.cosine_similarity": F.cosine_similarity, "by hand": _cosine_by_hand},
        ),
        _op(
            "contrastive_loss", 2, True, _K,
            _pair_eager(_contrastive_where, _contrastive_squares)
            | {"multiply": _contrastive_multiply},
        ),
        _op("chopra_loss", 2, True, _QL2, _pair_eager(_chopra_where, _chopra_squares)),
        _op("chopra_loss[l1]", 2, True, _QL1, {"abs": _chopra_where(_l1)}),
        _op(
            "triplet_loss", 3, False, {"margin": ALPHA},
            {"squares": _triplet(_squares), "vecdot": _triplet(_dots)},
        ),
        _op(
            "triplet_margin_loss", 3, False, {},
            {"F.triplet_margin_loss": F.triplet_margin_loss},
        ),
    )
}  # fmt: skip

#: The three that the issue's goals speak of.
MAIN = ("contrastive_loss", "chopra_loss", "triplet_loss")


# --- tasks ----------------------------------------------------------------------------------------


def inputs(
    op: Op, rows: int, columns: int = COLUMNS, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """Rows and labels (bool) with distances spread evenly over 0.2 to 1.8."""
    device = harness.place(torch.empty(0)).device
    generator = torch.Generator(device).manual_seed(rows * 1000 + columns)
    new: dict[str, Any] = {"generator": generator, "device": device}
    anchor = torch.randn(rows, columns, **new) / columns**0.5
    tensors = [anchor]
    for _ in range(op.inputs - 1):
        direction = F.normalize(torch.randn(rows, columns, **new), dim=1)
        length = 0.2 + 1.6 * torch.rand(rows, 1, **new)
        tensors.append(anchor + length * direction)
    impostor = torch.rand(rows, **new) < 0.5
    return [t.to(dtype) for t in tensors], impostor


def _arguments(op: Op, variant: str, tensors: Sequence[Tensor], impostor: Tensor) -> list[Tensor]:
    if not op.labels:
        return list(tensors)
    return [*tensors, impostor.to(tensors[0].dtype) if "multiply" in variant else impostor]


def _to_compile(op: Op) -> list[str]:
    """Two ways to write it are enough: the compiler fuses the others into the same loops."""
    return list(op.eager)[: 2 if harness.device == "cpu" else 1]


def _compiled(op: Op) -> Iterator[tuple[str, Function]]:
    for variant, mode in itertools.product(_to_compile(op), compile_modes()):
        function = torch.compile(op.eager[variant], dynamic=False, mode=mode)
        yield f"{variant}, {mode}", function


def _forward(op: Op, rows: int) -> Task:
    tensors, impostor = inputs(op, rows)

    def peer(family: str, variant: str, function: Function) -> Peer:
        arguments = _arguments(op, variant, tensors, impostor)
        return Peer(family, variant, lambda: function(*arguments), lambda: [function(*arguments)])

    x1, x2 = tensors[:2]
    empty = siamcuda._ops.extension.empty_op
    return Task(
        [
            peer("ours", "siamcuda", op.ours),
            Peer("floor", "empty_op", lambda: empty(x1, x2), None),
            *(peer("eager", variant, function) for variant, function in op.eager.items()),
        ],
        lambda: [op.exact(*_arguments(op, "", [t.double() for t in tensors], impostor))],
    )


def _exact_gradients(
    op: Op, tensors: Sequence[Tensor], impostor: Tensor, upstream: Tensor | None
) -> list[Tensor]:
    leaves = [t.detach().double().requires_grad_() for t in tensors]
    loss = op.exact(*_arguments(op, "", leaves, impostor))
    grads = torch.autograd.grad(loss, leaves, None if upstream is None else upstream.double())
    return [loss.detach(), *grads]


def _tolerance(dtype: torch.dtype) -> float:
    """bfloat16 has 8 bits; a difference of rows and its square round twice."""
    return 3e-2 if dtype == torch.bfloat16 else 1e-4


def _autograd(op: Op, rows: int, compiled: bool, dtype: torch.dtype = torch.float32) -> Task:
    tensors, impostor = inputs(op, rows, dtype=dtype)
    originals = [t.requires_grad_() for t in tensors]
    scalar = op.name not in ("squared_l2", "cosine_similarity")
    upstream = None if scalar else torch.full((rows,), 1.0 / rows, device=tensors[0].device)

    def peer(family: str, variant: str, function: Function) -> Peer:
        leaves = [harness.own_leaf(leaf) for leaf in originals]
        arguments = _arguments(op, variant, leaves, impostor)

        def clean() -> None:
            for leaf in leaves:
                leaf.grad = None

        def step() -> Tensor:
            clean()
            loss: Tensor = function(*arguments)
            loss.backward(upstream)
            return loss

        def outputs() -> list[Tensor]:
            loss = step()
            return [loss, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

        return Peer(family, variant, step, outputs, clean)

    peers = [peer("ours", "siamcuda", op.ours)]
    peers += [peer("eager", variant, function) for variant, function in op.eager.items()]
    if compiled:
        peers += [peer("compile", variant, function) for variant, function in _compiled(op)]
    tolerance = _tolerance(dtype)
    return Task(
        peers, lambda: _exact_gradients(op, tensors, impostor, upstream), tolerance, tolerance
    )


def _value_and_grad(op: Op, rows: int) -> Task:
    """Loss and gradients as values; PyTorch's peers get them by autograd.grad or torch.func."""
    assert op.value_and_grad is not None
    tensors, impostor = inputs(op, rows)
    originals = [t.clone().requires_grad_() for t in tensors]
    positions = tuple(range(op.inputs))

    def peer(family: str, variant: str, run: Callable[[], tuple[Tensor, Sequence[Tensor]]]) -> Peer:
        def outputs() -> list[Tensor]:
            loss, grads = run()
            return [loss, *grads]

        return Peer(family, variant, run, outputs)

    def by_autograd(variant: str, function: Function) -> Callable[[], Any]:
        leaves = [harness.own_leaf(leaf) for leaf in originals]
        arguments = _arguments(op, variant, leaves, impostor)

        def run() -> tuple[Tensor, Sequence[Tensor]]:
            loss = function(*arguments)
            return loss.detach(), torch.autograd.grad(loss, leaves)

        return run

    def by_func(variant: str, function: Function, mode: str) -> Callable[[], Any]:
        arguments = _arguments(op, variant, tensors, impostor)
        both = torch.func.grad_and_value(function, argnums=positions)
        # One graph for value and gradients: what a user gets who compiles the whole step.
        compiled = torch.compile(both, dynamic=False, mode=mode)

        def run() -> tuple[Tensor, Sequence[Tensor]]:
            grads, loss = compiled(*arguments)
            return loss, grads

        return run

    ours = _arguments(op, "", tensors, impostor)
    function = op.value_and_grad
    peers = [peer("ours", "siamcuda", lambda: function(*ours))]
    for variant, eager in op.eager.items():
        peers.append(peer("eager", variant, by_autograd(variant, eager)))
    if harness.device == "cpu":  # on a GPU one graph is enough
        for variant, compiled in _compiled(op):
            run = by_autograd(variant, compiled)
            peers.append(peer("compile", variant + ", autograd.grad", run))
    for variant, mode in itertools.product(_to_compile(op), compile_modes()):
        name = f"{variant}, {mode}, one graph"
        peers.append(peer("compile", name, by_func(variant, op.eager[variant], mode)))
    return Task(peers, lambda: _exact_gradients(op, tensors, impostor, None))


# --- cases ----------------------------------------------------------------------------------------


def _case(name: str, mode: str, rows: int, goals: tuple[Goal, ...] = (), **options: Any) -> Case:
    op = OPS[name]
    dtype = torch.bfloat16 if options.get("dtype") == "bfloat16" else torch.float32
    array = rows * COLUMNS * dtype.itemsize
    if mode == "forward":
        make, traffic = (lambda: _forward(op, rows)), (op.inputs, 0)
    elif mode == "autograd":
        compiled = options.pop("compiled", True)
        make, traffic = (lambda: _autograd(op, rows, compiled, dtype)), (op.inputs, op.inputs)
    else:
        make, traffic = (lambda: _value_and_grad(op, rows)), (op.inputs, op.inputs)
    # What the task needs: each input read once, each gradient written once.
    reads, writes = (array * n if rows >= FROM_MEMORY else 0 for n in traffic)
    title = f"{name}[bfloat16]" if dtype == torch.bfloat16 else name
    return Case(
        SUITE, title, mode, rows, COLUMNS, make, goals, reads=reads, writes=writes, **options
    )


TINY, IN_CACHE, FROM_MEMORY = 32, 2048, 65536


def cases(quick: bool = False) -> Iterator[Case]:
    """Every case of the suite; the quick ones are a sample that touches each kind."""
    for name, op in OPS.items():
        if quick and name not in ("squared_l2", "contrastive_loss"):
            continue
        yield _case(name, "forward", TINY, (Goal("floor", 3.0, "excess"),), allocators=("default",))
        goal = Goal("eager", op.overhead_goal)
        compiled = name in MAIN and not quick
        yield _case(name, "autograd", TINY, (goal,), allocators=("default",), compiled=compiled)

    in_cache = (Goal("eager", 5.0), Goal("compile", 2.0))
    for name in MAIN[:1] if quick else MAIN:
        yield _case(name, "autograd", IN_CACHE, in_cache)
        if not quick:
            yield _case(name, "value_and_grad", IN_CACHE)

    for name in MAIN[:1] if quick else MAIN:
        eager, compiled_ = (4.0, 1.4) if OPS[name].inputs == 3 else (2.8, 1.15)
        warm, default = ("warm",), ("default",)
        page_faults = Goal("compile", 2.0, allocators=default)
        goals = (Goal("eager", eager, allocators=warm), Goal("compile", compiled_, allocators=warm))
        yield _case(name, "autograd", FROM_MEMORY, (*goals, page_faults))
        goals = (Goal("eager", 4.5, allocators=warm), Goal("compile", 1.9, allocators=warm))
        yield _case(name, "value_and_grad", FROM_MEMORY, (*goals, page_faults))

    if not quick:
        for name, rows in itertools.product(("contrastive_loss", "triplet_loss"), (256, 16384)):
            yield _case(name, "autograd", rows, allocators=("warm",))
            yield _case(name, "value_and_grad", rows, allocators=("warm",))


def cuda_cases(quick: bool = False) -> Iterator[Case]:
    """The cases of a GPU: bound by launches, from its memory, and far beyond its caches."""
    sizes = (TINY,) if quick else (TINY, FROM_MEMORY, 1 << 20)
    for rows, name, mode in itertools.product(
        sizes, ("contrastive_loss", "triplet_loss"), ("autograd", "value_and_grad")
    ):
        yield _case(name, mode, rows, graph=True)
    yield _case("contrastive_loss", "autograd", sizes[-1], dtype="bfloat16", graph=True)
