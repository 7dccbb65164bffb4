"""Training end to end: steps of the trainer with the fused losses, beside plain PyTorch's.

A step is what the trainer does for a batch: its examples are loaded, random views drawn, encoded,
the loss and both gradients computed, the weights moved; every tenth one tells figures beside the
loss. The peers differ in the loss alone: fused; ``losses="reference"``, siamcuda.reference's plain
twins, which write the difference of every two rows out; and the same with distances by one matrix
product, which is how people write them for speed. The loss and every gradient of the first step of
each are compared with float64.

Where a step is cut into *parts*, each part is timed by itself in the same rounds: the ratio that is
recorded for it is its share of our step. What the trainer does beside them is the rest.

The digits are made here, and as large as MNIST's; the ``linear`` encoder is one layer on vectors,
where the loss is most of what there is to do.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import peers
from bench.harness import Case, Peer, Task
from siamcuda import reference
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, InputSpec
from siamcuda.train.objectives import AllPairs, DrawnPairs, Triplets
from siamcuda.train.samplers import PairSampler, PKSampler
from siamcuda.train.system import Examples, Objective, Outcome, System
from siamcuda.train.trainer import Listener, _Run

SUITE = "training"
REFERENCE, PRODUCT = "reference", "product"
#: Families of peers that are parts of a step, not steps.
PARTS = ("loading and views", "encoder", "loss", "plain loss", "optimizer")
EMBEDDING, FEATURES = 128, 64
CLASSES, OF_A_CLASS = 512, 10
#: Examples of a class in a batch.
TOGETHER = 4
#: All triplets of plain PyTorch take B x B x B floats several times over: not beyond these rows.
MOST_TRIPLETS = 256
#: Differences of all pairs take B x B x D floats several times over: not beyond these rows.
MOST_DIFFERENCES = 1024

#: Rows of digits, where the encoder takes the time and few sizes say all; 256 for the others.
DIGITS = {"all pairs": (64, 256, 1024, 4096), "hard triplets": (256, 1024)}

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "all pairs": partial(AllPairs, margin=1.0),
    "drawn pairs": DrawnPairs,
    "all triplets": Triplets,
    "hard triplets": partial(Triplets, mining="hard"),
}


@dataclass(frozen=True)
class ByProduct:
    """The objective in plain PyTorch, with all distances by one matrix product."""

    objective: AllPairs | Triplets

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        own = self.objective
        options: dict[str, Any] = {"margin": own.margin, "reduction": own.reduction}
        loss: Callable[..., Tensor] = reference.batch_contrastive_loss
        if isinstance(own, Triplets):
            loss, options["mining"] = reference.batch_triplet_loss, own.mining
        return Outcome(loss(outputs, labels, cdist=lambda x, _: peers.expanded(x), **options), {})


@dataclass(frozen=True, eq=False)
class Vectors:
    """Examples that are vectors (N, D), in memory."""

    vectors: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, rows: Tensor) -> Tensor:
        return self.vectors[rows]

    def digest(self) -> str:
        return ""  # nothing is resumed here


def examples(kind: str) -> Examples:
    """Noisy copies of a random centre a class: digits (N, 28, 28) uint8, or vectors (N, D)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES * OF_A_CLASS) // OF_A_CLASS
    names = tuple(map(str, range(CLASSES)))
    if kind == "linear":
        centres = torch.randn(CLASSES, FEATURES, generator=generator)
        noise = torch.randn(len(labels), FEATURES, generator=generator)
        return Vectors(centres[labels] + noise, labels, names)
    centres = torch.randint(0, 200, (CLASSES, 28, 28), generator=generator)
    digits = centres[labels] + torch.randint(0, 56, (len(labels), 28, 28), generator=generator)
    return ImageArray(digits.to(torch.uint8), labels, names)


class Linear(nn.Module):
    """One layer, to embeddings of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, EMBEDDING)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.layer(x))


def encoder(kind: str) -> nn.Module:
    if kind == "fast":
        return EncoderSpec(EncoderConfig("fast", EMBEDDING), InputSpec(1, 28, 28)).build(seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Linear()


def system(objective: str, kind: str, rows: int, losses: str) -> System:
    """What is trained; the same weights and batches whatever the losses."""
    data = examples(kind)
    sampler: Any = PKSampler(data.labels, rows // TOGETHER, TOGETHER, seed=0)
    if objective == "drawn pairs":
        sampler = PairSampler(data.labels, rows // 2, seed=0)
    # As the recipes on MNIST move their digits.
    views = ImageViews(
        (28, 28), Augmentation(12.0, 0.07, 0.12, 0.15, gamma=0, noise=0, erase=0, flip=0)
    )
    return System(
        encoder(kind), OBJECTIVES[objective](losses=losses), data, sampler,
        views if kind == "fast" else lambda stored, _: stored,
    )  # fmt: skip


class Training:
    """A trainer at work, step by step; it keeps the loss and the gradients of its first step."""

    def __init__(self, made: System) -> None:
        self.system = made
        self.run = _Run(made, TrainConfig(device="cpu", warm_up=0), None, {}, Listener())
        self.run._seed(0)
        self.run.model.train()
        self.batches = self._batches()
        self.first: list[Tensor] = []

    def _batches(self) -> Iterator[Tensor]:
        for epoch in itertools.count():
            yield from self.system.sampler.epoch(epoch)

    def step(self) -> None:
        chosen = next(self.batches)
        outcome = self.run._step(chosen, self.system.examples.load(chosen))
        self.run._add(outcome)
        self.run.position.step += 1
        if not self.first:
            self.first = [outcome.loss, self.gradients()]

    def gradients(self) -> Tensor:
        """Of all weights, one after the other."""
        return torch.cat([p.grad.flatten() for p in self.run.parameters if p.grad is not None])


def exact(objective: str, kind: str, rows: int) -> list[Tensor]:
    """Loss and gradients of the first step in float64, by the plain twins where they fit."""
    made = system(objective, kind, rows, "reference" if rows <= MOST_TRIPLETS else "fused")
    training = Training(made)
    chosen = next(training.batches)
    inputs = made.transform(made.examples.load(chosen), training.run.generator)
    model = copy.deepcopy(made.model).double()
    for own, theirs in zip(model.parameters(), made.model.parameters(), strict=True):
        theirs.grad = own.grad = None
    labels = made.examples.labels[chosen]
    loss = made.objective(model(inputs.double()), labels, training.run.generator, False).loss
    loss.backward()
    own = dict(zip(made.model.parameters(), model.parameters(), strict=True))
    found = [own[p].grad for p in training.run.parameters]
    return [loss.detach(), torch.cat([g.flatten() for g in found if g is not None])]


def by_product(made: System) -> System:
    objective: Any = made.objective
    return replace(made, objective=ByProduct(objective))


def make(objective: str, kind: str, rows: int, parts: bool) -> Task:
    ours = Training(system(objective, kind, rows, "fused"))
    found = [Peer("ours", "fused losses", ours.step, lambda: ours.first)]
    drawn = objective == "drawn pairs"
    if drawn or rows <= (MOST_TRIPLETS if objective == "all triplets" else MOST_DIFFERENCES):
        written = Training(system(objective, kind, rows, "reference"))
        found.append(Peer(REFERENCE, "plain PyTorch", written.step, lambda: written.first))
    if not drawn and not (objective == "all triplets" and rows > MOST_TRIPLETS):
        product = Training(by_product(system(objective, kind, rows, "fused")))
        found.append(Peer(PRODUCT, "plain PyTorch", product.step, lambda: product.first))
    if parts:
        found += _parts(objective, kind, rows, compared=len(found) > 1)
    # The nearest of two negatives as near as float32 can tell is either.
    stray = 0.02 if objective == "hard triplets" else 0.0
    # Gradients of convolutions are sums of thousands of terms that nearly cancel.
    atol = 2e-2 if kind == "fast" else 1e-3
    return Task(found, lambda: exact(objective, kind, rows), rtol=2e-3, atol=atol, stray=stray)


def _parts(objective: str, kind: str, rows: int, compared: bool) -> Iterator[Peer]:
    """Each part of a step by itself, on the same batches."""
    made = system(objective, kind, rows, "fused")
    training = Training(made)
    training.step()  # gradients for the optimizer
    run, model = training.run, made.model
    chosen = next(training.batches)
    inputs = made.transform(made.examples.load(chosen), run.generator)
    labels = made.examples.labels[chosen]
    outputs = model(inputs).detach()
    upstream = torch.randn(outputs.shape, generator=run.generator) / outputs.numel()
    kept = [p.grad for p in run.parameters]

    def load() -> None:
        rows = next(training.batches)
        made.transform(made.examples.load(rows), run.generator)

    def encode() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        model(inputs).backward(upstream)

    def loss(of: Objective) -> None:
        leaf = outputs.detach().requires_grad_()
        of(leaf, labels, run.generator, False).loss.backward()

    def move() -> None:
        for parameter, gradient in zip(run.parameters, kept, strict=True):
            parameter.grad = gradient
        run.place.step(run.optimizer, run.parameters)

    steps = [load, encode, partial(loss, made.objective)]
    plain: Any = OBJECTIVES[objective](losses="reference")
    steps += [partial(loss, plain if objective == "drawn pairs" else ByProduct(plain)), move]
    for family, step in zip(PARTS, steps, strict=True):
        if compared or family != "plain loss":
            yield Peer(family, "part", step, None)


# --- the table of cases ---------------------------------------------------------------------------


def _case(objective: str, kind: str, rows: int, parts: bool) -> Case:
    return Case(
        SUITE, f"{objective}, {kind}", "float32", rows, EMBEDDING,
        lambda: make(objective, kind, rows, parts), allocators=("warm",),
        rounds=3 if rows > 1024 else 5 if rows > 256 else 11,
    )  # fmt: skip


def cases(quick: bool = False) -> Iterator[Case]:
    """Every case; the quick ones touch each kind."""
    for objective in OBJECTIVES:
        if quick:
            yield _case(objective, "linear", 64, parts=True)
            continue
        for rows in DIGITS.get(objective, (256,)):
            yield _case(objective, "fast", rows, parts=rows == 256)
        for rows in (64, 256, 1024, 4096):
            yield _case(objective, "linear", rows, parts=rows == 1024)
    if quick:
        yield _case("all pairs", "fast", 64, parts=True)
