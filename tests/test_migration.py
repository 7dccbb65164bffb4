"""docs/migrating.md: its code runs, each row of its tables gives the same numbers as the library.

The tables are the cases: a row's two calls are evaluated on the same embeddings, and losses and
gradients are compared. tensorflow-addons is not run; its formulas stand at the end.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import siamcuda
from bench import peers

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "migrating.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

#: The classes of a batch of 12, by what the third column of a row asks for.
UNEVEN = [0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 0, 1]  # one row is alone
PAIRED = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 1, 1]
ONE_CLASS, NO_POSITIVES = [7] * 12, list(range(12))
BATCHES = {
    "always": [UNEVEN, PAIRED, ONE_CLASS, NO_POSITIVES],
    "every row has both": [PAIRED, [0, 1] * 6],
    "two classes": [UNEVEN, PAIRED, NO_POSITIVES],
    "a hard triplet": [UNEVEN, PAIRED],
}


@dataclass(frozen=True)
class Row:
    library: str
    theirs: str
    ours: str
    when: str


def table(library: str) -> list[Row]:
    text = PAGE.partition(f"<!-- migrate: {library} -->")[2].strip()
    lines = text.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [Row(library, line[0].strip("`"), line[1].strip("`"), line[2]) for line in cells]


LIBRARIES = re.findall(r"<!-- migrate: (.*) -->", PAGE)
ROWS = [row for library in LIBRARIES for row in table(library)]
EXPRESSED = [row for row in ROWS if row.when != "no"]


def test_the_tables_are_read():
    assert LIBRARIES == [
        "torch", "pytorch-metric-learning", "sentence-transformers", "open-metric-learning",
        "tensorflow-addons",
    ]  # fmt: skip
    assert len(ROWS) > 40
    for row in ROWS:
        assert row.when in (*BATCHES, "no"), row
        assert row.ours.endswith(")") or row.ours.endswith("+ 0.2") or row.when == "no", row
        assert len(row.ours) == 1 or row.when != "no", row


def define() -> dict[str, Any]:
    """What the page's code defines, run from top to bottom."""
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/migrating.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def defined() -> dict[str, Any]:
    return define()


def test_snippets_run(defined):
    assert {"on_sphere", "every_semihard", "Bank", "rows_of_all_ranks"} <= set(defined)
    assert bool(defined["x"].grad.any())
    assert defined["bank"].rows.shape == (36, 8)


def imported(library: str) -> dict[str, Any]:
    """The names that a table uses. A library that make test installs must be there."""
    if library == "torch":
        return {}
    if library == "open-metric-learning":
        found = peers.open_metric_learning()
        if found is None:
            pytest.skip("open-metric-learning replaces torch and numpy when installed: "
                        "see docs/migrating.md")  # fmt: skip
        return found
    try:
        if library == "pytorch-metric-learning":
            from pytorch_metric_learning import distances, losses, miners, reducers

            return {"distances": distances, "losses": losses, "miners": miners,
                    "reducers": reducers}  # fmt: skip
        from sentence_transformers.sentence_transformer import losses
    except ModuleNotFoundError as error:
        pytest.fail(f"{error}: pip install 'siamcuda[peers]'")
    return {
        "losses": losses,
        "metric": losses.BatchHardTripletLossDistanceFunction,
        "model": None,  # never called: losses take embeddings
    }


def example(
    dtype: torch.dtype, classes: list[int], seed: int, scale: float = 0.3
) -> dict[str, Tensor]:
    """Some classes stand apart and some pairs are near, so that hinges are on either side."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    other = [*classes, 2, 0, 9, 7, 3]
    centres = 2 * randn(13, 8)
    centres[1::2] = 0
    similar = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1])
    if classes == ONE_CLASS:
        similar = torch.ones_like(similar)
    if classes == NO_POSITIVES:
        similar = torch.zeros_like(similar)
    x1 = randn(12, 8)
    tensors = {
        "x": randn(12, 8) + centres[classes],
        "r": randn(17, 8) + centres[other],
        "x1": x1,
        "x2": x1 + torch.linspace(0.1, 2, 12, dtype=dtype).unsqueeze(1) * randn(12, 8),
        **{name: randn(12, 8) for name in ("a", "p", "n")},
    }
    return {name: (scale * rows).requires_grad_() for name, rows in tensors.items()} | {
        "y": torch.tensor(classes), "ry": torch.tensor(other), "similar": similar,
    }  # fmt: skip


def evaluate(code: str, names: dict[str, Any], data: dict[str, Tensor]) -> Tensor:
    distance = torch.linalg.vector_norm(data["x1"] - data["x2"], dim=1)
    value = eval(code, {**names, **data, "d": distance})
    if isinstance(value, nn.Module):  # sentence-transformers: a model gives the embeddings
        kind = type(value).__name__
        if kind.startswith("Batch"):
            return value.compute_loss_from_embeddings([data["x"]], data["y"])
        if kind == "TripletLoss":
            triplet = [data["a"], data["p"], data["n"]]
            return value.compute_loss_from_embeddings(triplet, torch.empty(0))
        return value.compute_loss_from_embeddings([data["x1"], data["x2"]], data["similar"])
    return value


def gradients(loss: Tensor, data: dict[str, Tensor]) -> list[Tensor]:
    leaves = [tensor for tensor in data.values() if tensor.requires_grad]
    weights = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
    found = torch.autograd.grad((loss * weights).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


TRIED = [row for row in EXPRESSED if row.library != "tensorflow-addons"]


@pytest.mark.parametrize("row", TRIED, ids=lambda row: f"{row.library}: {row.theirs}")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 2e-4)], ids=str
)
def test_rows(row, dtype, tolerance, defined):
    theirs, nonzero = {**defined, **imported(row.library)}, False
    batches = itertools.product(enumerate(BATCHES[row.when]), (0.3, 3.0))
    for (seed, classes), scale in batches:
        data = example(dtype, classes, seed, scale)
        want, got = evaluate(row.theirs, theirs, data), evaluate(row.ours, defined, data)
        context = f"{classes}: {{}}".format
        close = {"rtol": tolerance, "atol": tolerance, "msg": context}
        torch.testing.assert_close(got, want.reshape(got.shape).to(got.dtype), **close)
        for one, other in zip(gradients(got, data), gradients(want, data), strict=True):
            torch.testing.assert_close(one, other, **close)
            nonzero = nonzero or bool(one.any())
    assert nonzero, "a table row that is compared on zeros alone says nothing"


# --- what the last column says --------------------------------------------------------------------


def sentence(name: str, classes: list[int], **options: Any) -> tuple[float, Tensor, Tensor]:
    data = example(torch.float64, classes, 0)
    loss = getattr(imported("sentence-transformers")["losses"], name)(None, **options)
    x, y = data["x"].detach(), data["y"]
    d = siamcuda.squared_cdist(x, x).sqrt()
    return float(loss.compute_loss_from_embeddings([x], y)), d, y


def test_sentence_transformers_counts_rows_without_positives():
    loss, d, _ = sentence("BatchHardTripletLoss", NO_POSITIVES, margin=5.0)
    nearest = (d + 1e9 * torch.eye(12)).min(1).values
    assert loss == pytest.approx(float(F.relu(5 - nearest).mean()))


def test_sentence_transformers_counts_pairs_without_negatives():
    loss, d, _ = sentence("BatchSemiHardTripletLoss", ONE_CLASS, margin=5.0)
    assert loss == pytest.approx(float(d.sum() / (12 * 11) + 5))


def test_pytorch_metric_learning_is_linear_and_averages_apart():
    data = example(torch.float64, UNEVEN, 0)
    losses = imported("pytorch-metric-learning")["losses"]
    z, y = F.normalize(data["x"].detach()), data["y"]
    d, same = siamcuda.squared_cdist(z, z).sqrt(), y.unsqueeze(1) == y
    near, far = d[same & ~torch.eye(12, dtype=torch.bool)], F.relu(1 - d[~same])
    far = far[far > 0]
    assert len(far) > 3
    loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=1)(data["x"].detach(), y)
    assert float(loss) == pytest.approx(float(near.mean() + far.mean()))


def test_pytorch_metric_learning_leaves_the_diagonal_out_of_its_own_labels():
    """As the row of ref_emb says: if ref_labels is labels."""
    data = example(torch.float64, UNEVEN, 0)
    loss = imported("pytorch-metric-learning")["losses"].TripletMarginLoss(margin=3.0)
    x, y = data["x"].detach(), data["y"]
    alone = float(loss(x, y))
    assert float(loss(x, y, ref_emb=x, ref_labels=y)) == pytest.approx(alone)
    assert float(loss(x, y, ref_emb=x, ref_labels=y.clone())) != pytest.approx(alone)


def test_metric_learning_bank_with_enqueue_mask_is_ref_embeddings():
    library = imported("pytorch-metric-learning")
    wrapped = library["losses"].TripletMarginLoss(margin=0.2)
    memory = library["losses"].CrossBatchMemory(wrapped, embedding_size=8, memory_size=64)
    data = example(torch.float64, UNEVEN, 0)
    both, classes = torch.cat([data["x"], data["r"]]), torch.cat([data["y"], data["ry"]])
    enqueue = torch.arange(len(both)) >= 12
    got = siamcuda.batch_triplet_loss(
        F.normalize(data["x"]), data["y"], margin=0.2, squared=False,
        ref_embeddings=F.normalize(data["r"]), ref_labels=data["ry"], reduction="mean_active",
    )  # fmt: skip
    torch.testing.assert_close(memory(both, classes, enqueue_mask=enqueue), got)


def test_torch_adds_its_eps():
    row = torch.randn(1, 16, dtype=torch.float64)
    assert float(F.pairwise_distance(row, row)) == pytest.approx(16**0.5 * 1e-6)
    assert float(siamcuda.squared_l2(row, row)) == 0


# --- tensorflow-addons 0.23.0 by its formulas -----------------------------------------------------


def tfa_contrastive(data: dict[str, Tensor]) -> Tensor:
    d = torch.linalg.vector_norm(data["x1"] - data["x2"], dim=1)
    return torch.stack(
        [v**2 if s else F.relu(1.0 - v) ** 2 for v, s in zip(d, data["similar"], strict=True)]
    )


def tfa_triplets(data: dict[str, Tensor], mined: Callable[..., Tensor]) -> list[Tensor]:
    """Values of all (a, p), the negative chosen by ``mined`` from distances of a to others."""
    x, y = data["x"], data["y"].tolist()
    d = torch.cdist(x, x)
    found = []
    for a, own in enumerate(y):
        negatives = d[a][[q for q, other in enumerate(y) if other != own]]
        positives = [d[a, p] for p, other in enumerate(y) if other == own and p != a]
        found += [F.relu(d_ap - d_an + 1.0) for d_ap, d_an in mined(positives, negatives)]
    return found


def tfa_semihard(data: dict[str, Tensor]) -> Tensor:
    def mined(positives, negatives):
        for d_ap in positives:
            farther = negatives[negatives > d_ap]
            yield d_ap, farther.min() if len(farther) else negatives.max()

    found = tfa_triplets(data, mined)
    return torch.stack(found).mean() if found else data["x"].sum() * 0  # theirs: 0/0


def tfa_hard(data: dict[str, Tensor]) -> Tensor:
    def mined(positives, negatives):
        yield torch.stack(positives).max(), negatives.min()

    return torch.stack(tfa_triplets(data, mined)).mean()


FORMULAS = {
    "contrastive_loss": tfa_contrastive,
    "triplet_semihard_loss": tfa_semihard,
    "triplet_hard_loss": tfa_hard,
}


@pytest.mark.parametrize("row", table("tensorflow-addons"), ids=lambda row: row.theirs)
def test_tensorflow_addons_by_formula(row, defined):
    formula = FORMULAS[re.fullmatch(r"tfa\.losses\.(\w+)\(.*", row.theirs)[1]]
    for seed, classes in enumerate(BATCHES[row.when]):
        data = example(torch.float64, classes, seed)
        got, want = evaluate(row.ours, defined, data), formula(data)
        torch.testing.assert_close(got, want)
        for one, other in zip(gradients(got, data), gradients(want, data), strict=True):
            torch.testing.assert_close(one, other)
