"""The losses over a batch: every pair, mined and all triplets, and all distances.

Peers come from bench/peers.py, each at the setting that is best for it; the fastest of a family
stands for it. Families that are not installed are left out. Rows are unit vectors, 8 or 64 of a
class; a step is the loss and backward() with a fresh gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import siamcuda
from bench import harness, peers
from bench.harness import Case, Goal, Peer, Task

SUITE = "batch"
COLUMNS = 128
FAMILIES = ("eager", "compile", peers.METRIC, peers.SENTENCE, peers.OPEN)
#: A cube of more values than this is no peer: it would only show that memory ran out.
CUBE = 512**3
#: On a GPU a compilation takes seconds of a lease, so the ways that can win are compiled alone.
CUDA_COMPILED = ("expanded", "gathered", "both known", "chosen rows")
#: torch.pdist keeps every pair's difference for backward; its indices alone are 2 GiB at 16,384.
CUDA_PDIST = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def inputs(rows: int, per_class: int) -> tuple[Tensor, Tensor]:
    """Unit vectors around their class's centre, and labels; 0 of a class: sizes 1 to 15."""
    generator = torch.Generator().manual_seed(rows)
    if per_class:
        labels = torch.arange(rows) // per_class
    else:
        labels = (torch.arange(rows).double() ** 0.5 * 2).long()  # classes of growing size
    centres = torch.randn(int(labels.max()) + 1, COLUMNS, generator=generator)
    x = centres[labels] + 1.5 * torch.randn(rows, COLUMNS, generator=generator)
    return harness.place(F.normalize(x)), harness.place(labels)


def _step(family: str, variant: str, leaf: Tensor, loss: Callable[[Tensor], Tensor]) -> Peer:
    leaf = harness.own_leaf(leaf)

    def clean() -> None:
        leaf.grad = None

    def step() -> Tensor:
        clean()
        value = loss(leaf)
        value.backward()
        return value

    def outputs() -> list[Tensor]:
        value = step()
        assert leaf.grad is not None
        return [value, leaf.grad]

    return Peer(family, variant, step, outputs, clean)


def _compiles(peer: peers.BatchPeer, rows: int) -> bool:
    if harness.device == "cpu":
        return peer.one_graph and rows**2 <= 4096**2
    return peer.one_graph and peer.variant in CUDA_COMPILED


def _prepared(peer: peers.BatchPeer, labels: Tensor) -> peers.Step | None:
    """The peer's step; None where it is not installed or, on a GPU, can't be prepared."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer.prepare(labels, **peer.options)
    except Exception as error:
        if harness.device == "cpu":
            raise
        harness.left_out(f"{peer.family} ({peer.variant})", error)
        return None


def _task(
    name: str, options: dict[str, Any], rows: int, per_class: int,
    dtype: torch.dtype = torch.float32,
) -> Task:  # fmt: skip
    x, labels = inputs(rows, per_class)
    x = x.to(dtype)
    leaf = x.clone().requires_grad_()
    function = getattr(siamcuda, name)
    found = [_step("ours", "siamcuda", leaf, lambda t: function(t, labels, **options))]
    exact: Callable[[Tensor], Tensor] | None = None
    for peer in peers.PEERS:
        own = {**peer.options, **peer.ours}
        if peer.op != name or any(own.get(k) != v for k, v in options.items()):
            continue
        if own.get("soft", False) != options.get("soft", False):
            continue
        if (peer.equal_classes and not per_class) or (
            peer.variant in ("cube", "all triplets", "kept triplets", "batch all")
            and rows**3 > CUBE
        ):
            continue
        if harness.device == "cuda" and peer.variant == "pdist" and rows > CUDA_PDIST:
            continue
        loss = _prepared(peer, labels)
        if loss is None:
            continue
        if exact is None and peer.family == "eager":
            exact = loss
        ways = {peer.variant: loss}
        if dtype != torch.float32:  # distances by a product of half precision are poor
            ways[f"{peer.variant}, in float32"] = partial(_widened, loss)
        for variant, way in ways.items():
            found.append(_step(peer.family, variant, leaf, way))
            if _compiles(peer, rows):
                compiled = torch.compile(way, dynamic=False)
                found.append(_step("compile", variant, leaf, compiled))
    assert exact is not None, f"{name} has no eager peer"
    oracle = exact

    def expected() -> list[Tensor]:
        wide = x.double().requires_grad_()
        value = oracle(wide)
        return [value.detach(), torch.autograd.grad(value, wide)[0]]

    # The gradient of an expanded form is as good as its distances: near the tolerance of float32.
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    mined = options.get("mining") in ("hard", "semihard")
    stray = 3e-3 if mined else 0.0  # a tie that falls otherwise moves three rows
    return Task(found, expected, rtol=tolerance, atol=tolerance, stray=stray)


def _widened(loss: peers.Step, x: Tensor) -> Tensor:
    return loss(x.float())


def _cdist(rows: int) -> Task:
    generator = torch.Generator().manual_seed(rows)
    x1, x2 = harness.place(torch.randn(2, rows, COLUMNS, generator=generator))
    weights = harness.place(torch.randn(rows, rows, generator=generator))
    originals = [x1.requires_grad_(), x2.requires_grad_()]

    def peer(family: str, variant: str, function: Callable[..., Tensor]) -> Peer:
        leaves = [harness.own_leaf(leaf) for leaf in originals]

        def clean() -> None:
            for leaf in leaves:
                leaf.grad = None

        def step() -> Tensor:
            clean()
            distances = function(*leaves)
            distances.backward(weights)
            return distances

        def outputs() -> list[Tensor]:
            distances = step()
            return [distances, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

        return Peer(family, variant, step, outputs, clean)

    def expected() -> list[Tensor]:
        wide = [t.detach().double().requires_grad_() for t in originals]
        distances = torch.cdist(*wide).square()
        return [distances.detach(), *torch.autograd.grad(distances, wide, weights.double())]

    found = [
        peer("ours", "siamcuda", siamcuda.squared_cdist),
        peer("eager", "torch.cdist squared", lambda a, b: torch.cdist(a, b).square()),
        peer("eager", "expanded", _expanded),
    ]
    # torch.cdist alone has other gradients; it is what the goal names, so it is timed unchecked.
    unsquared = peer("torch.cdist", "torch.cdist", torch.cdist)
    found.append(replace(unsquared, outputs=None))
    return Task(found, expected, rtol=1e-3, atol=1e-3)


def _expanded(a: Tensor, b: Tensor) -> Tensor:
    n1, n2 = a.square().sum(1, keepdim=True), b.square().sum(1)
    return torch.addmm(n2, a, b.t(), alpha=-2).add(n1)


def _case(
    title: str, name: str, options: dict[str, Any], rows: int, per_class: int = 8,
    goals: tuple[Goal, ...] = (), dtype: str = "float32", graph: bool = False,
) -> Case:  # fmt: skip
    return Case(
        SUITE, title, "autograd", rows, COLUMNS,
        lambda: _task(name, options, rows, per_class, DTYPES[dtype]),
        goals, allocators=("warm",), dtype=dtype, graph=graph,
    )  # fmt: skip


def _all_of(value: float) -> tuple[Goal, ...]:
    return tuple(Goal(family, value) for family in FAMILIES)


def cases(quick: bool = False) -> Iterator[Case]:
    """Every case of the suite; the quick ones are a sample that touches each kind."""
    pairs = (Goal("compile", 4.0), Goal("eager", 10.0), Goal("pytorch-metric-learning", 10.0))
    # Unit vectors of different classes are farther apart than 1 and nearer than 2: at a margin of 1
    # few impostors have a gradient, at 2 all of them.
    contrastive, every_pair = {"margin": 1.0}, {"margin": 2.0}
    chopra = {"q": 2.0, "energy": "l2"}
    hard = {"mining": "hard", "squared": False, "reduction": "mean"}
    every = {"mining": "all", "squared": False, "reduction": "mean"}
    if quick:
        yield _case("batch_contrastive_loss", "batch_contrastive_loss", contrastive, 256)
        yield _case("batch_triplet_loss[all]", "batch_triplet_loss", every, 128)
        return
    for rows in (256, 512, 1024, 2048, 4096):
        goals = pairs if rows == 4096 else ()
        yield _case(
            "batch_contrastive_loss", "batch_contrastive_loss", contrastive, rows, goals=goals
        )
        yield _case(
            "batch_contrastive_loss[all active]", "batch_contrastive_loss", every_pair, rows,
            goals=goals,
        )  # fmt: skip
        yield _case("batch_chopra_loss", "batch_chopra_loss", chopra, rows, goals=goals)
    for rows in (256, 512, 1024, 2048):
        goals = _all_of(4.0) if rows in (512, 1024) else ()
        yield _case("batch_triplet_loss[hard]", "batch_triplet_loss", hard, rows, goals=goals)
    for rows in (256, 512, 1024):
        yield _case(
            "batch_triplet_loss[all]", "batch_triplet_loss", every, rows,
            goals=(Goal("eager", 4.0),),
        )  # fmt: skip
    yield _case("batch_triplet_loss[all, uneven]", "batch_triplet_loss", every, 512, per_class=0)
    yield _case(
        "batch_triplet_loss[all, 64 a class]", "batch_triplet_loss", every, 512, per_class=64,
        goals=_all_of(15.0),
    )  # fmt: skip
    semihard = {"mining": "semihard", "squared": False, "reduction": "mean"}
    for rows in (512, 1024):
        yield _case("batch_triplet_loss[semihard]", "batch_triplet_loss", semihard, rows)
    yield Case(
        SUITE, "squared_cdist", "autograd", 4096, COLUMNS, lambda: _cdist(4096),
        (Goal("torch.cdist", 2.0),), allocators=("default", "warm"),
    )  # fmt: skip


def cuda_cases(quick: bool = False) -> Iterator[Case]:
    """The cases of a GPU, those that say most first: a lease may end before the last."""
    pairs = "batch_contrastive_loss[all active]", "batch_contrastive_loss", {"margin": 2.0}
    chopra = "batch_chopra_loss", "batch_chopra_loss", {"q": 2.0, "energy": "l2"}

    def triplets(mining: str) -> tuple[str, str, dict[str, Any]]:
        options = {"mining": mining, "squared": False, "reduction": "mean"}
        return f"batch_triplet_loss[{mining}]", "batch_triplet_loss", options

    if quick:
        yield _case(*pairs, 256, graph=True)
        yield _case(*triplets("all"), 128, graph=True)
        return
    for rows in (512, 4096, 16384):
        yield _case(*pairs, rows, graph=True)
        yield _case(*chopra, rows, graph=True)
        if rows < 16384:
            yield _case(*triplets("hard"), rows, graph=True)
        if rows == 512:
            yield _case(*triplets("semihard"), rows, graph=True)
            yield _case(*triplets("all"), rows, graph=True)
    for mining in ("hard", "semihard", "all"):
        yield _case(*triplets(mining), 1024, graph=True)
    yield Case(SUITE, "squared_cdist", "autograd", 4096, COLUMNS, lambda: _cdist(4096), graph=True)
    yield _case(f"{pairs[0][:-1]}, bfloat16]", *pairs[1:], 4096, dtype="bfloat16", graph=True)
