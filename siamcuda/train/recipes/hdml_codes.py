"""MNIST as binary codes by a triplet hinge of Hamming distances; the nearest codes decide.

After M. Norouzi, D. Fleet and R. Salakhutdinov, "Hamming distance metric learning", NIPS 2012: a
triplet hinge of Hamming distances trains codes, and neighbours in Hamming distance classify.

What differs: the paper minimises an upper bound of the hinge, found by inference of the worst
codes. Here the hinge itself is minimised, over all triplets of a batch, with codes of exactly ±1 in
the forward pass and the gradient of tanh in the backward pass (straight through the sign). The
encoder is a convnet that sees random views of the digits; the paper has linear maps and nets of two
layers.

The figure: a test digit is given the class that most of its nearest training digits have, found by
exact search of packed codes; equal distances in the order of the training digits. Beside it stands
the same of the numbers before their signs were taken, as float32, and the time of either search.
Labels draw the codes of a class together: how many different ones are left is told too.
Settings were chosen on the last 10,000 training digits; ``--validate`` leaves them out and tests on
them instead.

Each length has a run folder of its own, ``bits-32`` and ``bits-64``, with ``gallery.safetensors``,
the codes of the digits that were learned from.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamcuda import Gallery, pack_bits, verification
from siamcuda._files import write_atomically
from siamcuda.gallery import Neighbours
from siamcuda.report import grids, plots
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import CodeEncoder, EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import Triplets
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._digits import (
    STORED_FAR,
    DigitOptions,
    check_neighbours,
    split_digits,
    vote,
)
from siamcuda.train.runs import RunFolder
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese

__all__ = ["RECIPE", "HdmlCodes", "run", "table", "within_radius"]

#: Of the retrieval picture: test digits in order, as many that are wrong, codes found for each.
SHOWN, FOUND = 5, 10
#: Searches of which the fastest is reported.
REPEATS = 3


@dataclass(frozen=True)
class HdmlCodes(DigitOptions):
    """MNIST as binary codes: a triplet hinge of Hamming distances, exact Hamming search."""

    out: Path = Path("runs/hdml-codes")  # run folder; an interrupted run there goes on
    bits: tuple[int, ...] = (32, 64)  # lengths of codes, each trained by itself
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast", normalize=False))
    digits_per_class: int = 26  # of each of the ten classes in a batch
    # a bit that differs adds 4 to the squared distance of codes of ±1: a margin of 32 is 8 bits
    objective: Triplets = field(default_factory=lambda: Triplets(margin=32.0))
    neighbours: int = 11  # training digits that vote for the class of a test digit
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=7, learning_rate=2e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, digits_per_class=2)
        if not self.bits or len(set(self.bits)) < len(self.bits):
            raise InputError(f"bits: one or several different lengths are expected: {self.bits}")
        if self.encoder.bits is not None:
            raise InputError("encoder.bits: the lengths of codes are the option bits")
        for bits in self.bits:
            self.of(bits)
        super().check()

    def of(self, bits: int) -> HdmlCodes:
        """The options of one length, in its folder."""
        encoder = replace(self.encoder, bits=bits)
        return replace(self, out=self.out / f"bits-{bits}", bits=(bits,), encoder=encoder)


def run(options: HdmlCodes) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    known, unseen = split_digits(options)
    check_neighbours(options.neighbours, known)
    folder = RunFolder(options.out, ("retrieval.png", "radius.png"))
    return folder.complete(
        options, _config(options, known, unseen),
        lambda: _made(options, folder, known, unseen),
    )  # fmt: skip


def _own(options: HdmlCodes) -> dict[str, Any]:
    """What decides the weights, beside encoder, views, digits and the trainer's own settings."""
    return {
        "recipe": "hdml-codes",
        "digits_per_class": options.digits_per_class,
        "objective": asdict(options.objective),
    }


def _config(options: HdmlCodes, known: ImageArray, unseen: ImageArray) -> dict[str, Any]:
    others = {"bits": list(options.bits), "neighbours": options.neighbours}
    return options.digits(known, unseen, **others, **_own(options))


def _made(
    options: HdmlCodes, folder: RunFolder, known: ImageArray, unseen: ImageArray
) -> dict[str, Any]:
    parts = []
    for bits in options.bits:
        asked = options.of(bits)
        part = RunFolder(asked.out, ("retrieval.png", "gallery.safetensors"))
        make = partial(_made_part, asked, part, known, unseen)
        config = _config(asked, known, unseen)
        parts.append(part.complete(asked, config, make))
    codes = {bits: figures for part in parts for bits, figures in part["codes"].items()}
    longest = options.of(max(options.bits)).out
    write_atomically(folder.path / "retrieval.png", (longest / "retrieval.png").read_bytes())
    radius = plots.radius_curves(
        {f"{bits} bits": (one["precision"], one["recall"]) for bits, one in codes.items()},
        f"Any two of {len(unseen):,} digits never seen in training",
    )
    write_atomically(folder.path / "radius.png", radius)
    sums = ("seconds_training", "seconds_testing")
    kept = ("neighbours", "digits_train", "digits_test", "epochs", "threads", "versions")
    return {
        "codes": codes,
        **{name: parts[0][name] for name in kept},
        **{name: round(sum(part[name] for part in parts), 1) for name in sums},
    }


def _made_part(
    options: HdmlCodes, folder: RunFolder, known: ImageArray, unseen: ImageArray
) -> dict[str, Any]:
    [bits], classes = options.bits, len(known.names)
    sampler = PKSampler(known.labels, classes, options.digits_per_class, options.train.seed)
    system = options.system(known, options.objective, sampler)
    title = f"Codes of {bits} bits, {len(known):,} digits"
    trained_for = folder.fit(system, options.train, _own(options), title, bar=f"{bits} bits")
    started = time.perf_counter()
    trained = Siamese(options.spec, system.model, distance="hamming")
    relaxed, queries = _relaxed(trained, known), _relaxed(trained, unseen)  # (N, bits) float32
    codes = Gallery(pack_bits(relaxed), metric="hamming")
    asked = pack_bits(queries)
    k = options.neighbours
    found, seconds = _timed(codes, asked, k)
    in_float, seconds_in_float = _timed(Gallery(relaxed), queries, k)
    nearest = known.labels[found.ids]
    wrong = vote(nearest, classes) != unseen.labels
    wrong_in_float = vote(known.labels[in_float.ids], classes) != unseen.labels
    # bits that differ are the squared distance of bits as numbers
    report = verification.evaluate(
        (queries > 0).float(), unseen.labels, far=STORED_FAR, thresholds=range(bits + 1),
        identification=False,
    )  # fmt: skip
    precision, recall = within_radius(report, bits)
    trained.calibrated(report, STORED_FAR).save(folder.path)
    codes.save(folder.path / "gallery.safetensors")
    picture = _draw(known, unseen, wrong, codes, asked, bits)
    write_atomically(folder.path / "retrieval.png", picture)
    figures = {
        "error": float(wrong.double().mean()),
        "wrong": int(wrong.sum()),
        "error_nearest": float((nearest[:, 0] != unseen.labels).double().mean()),
        "error_float32": float(wrong_in_float.double().mean()),
        "different_codes": len(pack_bits(relaxed).unique(dim=0)),
        "seconds_search": seconds,
        "seconds_search_float32": seconds_in_float,
        "precision": precision,
        "recall": recall,
    }
    return {
        "codes": {str(bits): figures},
        "neighbours": k,
        "digits_train": len(known),
        "digits_test": len(unseen),
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


@torch.inference_mode()
def _relaxed(trained: Siamese, digits: ImageArray) -> Tensor:
    """What the encoder gives before the signs, (N, bits) in (−1, 1); its signs are the codes."""
    encoder: CodeEncoder = trained.encoder  # type: ignore[assignment]  # a spec with bits has one
    parts = torch.arange(len(digits)).split(256)
    return torch.cat([encoder.relaxed(trained.views(digits.load(rows))) for rows in parts])


def _timed(gallery: Gallery, queries: Tensor, k: int) -> tuple[Neighbours, float]:
    """Search, and the seconds of the fastest of some searches."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = gallery.search(queries, k)
        seconds.append(time.perf_counter() - started)
    return found, round(min(seconds), 4)


def within_radius(
    report: verification.VerificationReport, bits: int
) -> tuple[list[float | None], list[float]]:
    """Precision and recall of all codes within a Hamming radius of a code.

    Args:
        report: of Hamming distances, exact at 0, 1, ..., ``bits``.
        bits: of a code.

    Returns:
        For each radius 0 to ``bits`` the share of the same class among what is within it, None
        where nothing is, and the share of the same class that is within it.
    """
    precision: list[float | None] = []
    recall: list[float] = []
    for radius in range(bits + 1):
        accepted, rejected = report.rates(radius)
        right, false = (1 - rejected) * report.genuine, accepted * report.impostor
        precision.append(right / (right + false) if right + false > 0 else None)
        recall.append(1 - rejected)
    return precision, recall


def _draw(
    known: ImageArray, unseen: ImageArray, wrong: Tensor, codes: Gallery, asked: Tensor, bits: int
) -> bytes:  # fmt: skip
    """Draw the first test digits, the first ones that are wrong, and the codes nearest to each."""
    failed = torch.nonzero(wrong)[:SHOWN, 0]
    first = torch.nonzero(~wrong)[:SHOWN, 0]
    rows = torch.cat([first, failed])
    distances, ids = codes.search(asked[rows], min(FOUND, len(known)))
    right = known.labels[ids] == unseen.labels[rows].unsqueeze(1)
    return grids.retrieval_grid(
        list(unseen.images[rows].numpy()), [list(known.images[line].numpy()) for line in ids],
        right.tolist(),
        f"The first {len(first)} test digits that are recognised and the first {len(failed)} that "
        f"are not, with their nearest {bits}-bit codes",
        names=[unseen.names[label] for label in unseen.labels[rows].tolist()],
        captions=[[str(distance) for distance in line] for line in distances.tolist()],
        inverted=True,
    )  # fmt: skip


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    lines = [
        f"{'':>8} {'wrong, %':>10} {'float32, %':>12} {'search, s':>11} {'float32, s':>12} "
        f"{'different':>11}"
    ]
    lines += [
        f"{bits:>3} bits {100 * one['error']:>10.2f} {100 * one['error_float32']:>12.2f} "
        f"{one['seconds_search']:>11.3f} {one['seconds_search_float32']:>12.3f} "
        f"{one['different_codes']:>11,}"
        for bits, one in metrics["codes"].items()
    ]
    lines += [
        f"({metrics['neighbours']} neighbours vote; search: {metrics['digits_test']:,} digits in "
        f"{metrics['digits_train']:,};",
        "float32: the same numbers before their signs were taken, by squared distance;",
        f"different: codes that the {metrics['digits_train']:,} digits have;",
        f"{metrics['epochs']} epochs, {metrics['seconds_training']:.0f} s of training in all, "
        f"{metrics['threads']} threads)",
    ]
    return "\n".join(lines)


def headline(metrics: dict[str, Any]) -> str:
    """The figure that counts."""
    errors = " / ".join(f"{100 * one['error']:.2f}" for one in metrics["codes"].values())
    return f"{errors} % of the digits wrong by {' / '.join(metrics['codes'])} bits"


RECIPE = Recipe(
    options=HdmlCodes,
    run=run,
    table=table,
    headline=headline,
    data="MNIST, all 60,000",
    pictures={
        "retrieval.png": "Test digits and their nearest codes, the longest ones, with the bits "
        "that differ",
        "radius.png": "What a Hamming radius finds: precision and recall",
    },
    quick=HdmlCodes(small=True, bits=(16, 32), train=TrainConfig(epochs=1, device="cpu")),
)
