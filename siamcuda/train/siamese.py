"""A trained system: encoder, distance, threshold and calibrator, in one folder; what people use.

``checkpoint.safetensors`` holds the weights and, as its metadata, all that is needed to build the
encoder again and to use it as it was tested; ``calibrator.json`` turns distances to similarities.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

import siamcuda
from siamcuda.train.augment import ImageViews
from siamcuda.train.data import Decoder, Fit, ImageFiles
from siamcuda.train.encoders import EncoderSpec, InputSpec, Tokenizer
from siamcuda.train.errors import InputError
from siamcuda.train.storage import load_tensors, load_weights, save_tensors, tensor_digest
from siamcuda.train.system import Examples
from siamcuda.verification import Calibrator, VerificationReport

__all__ = ["CALIBRATOR", "CHECKPOINT", "Comparison", "Distance", "Siamese"]

CHECKPOINT, CALIBRATOR = "checkpoint.safetensors", "calibrator.json"
#: Between two embeddings; hamming counts the bits in which two codes differ.
Distance = Literal["euclidean", "sqeuclidean", "cosine", "l1", "hamming"]
_VERSION = 1


class Comparison(NamedTuple):
    """What two examples are to each other."""

    distance: float
    similarity: float | None  # 0…1, the chance that they show the same; None without a calibrator
    same: bool | None  # distance ≤ threshold; None without a threshold


@dataclass(frozen=True)
class Siamese:
    """An encoder with everything that its use depends on.

    Args:
        spec: what it is and what it takes.
        encoder: the network, in evaluation mode.
        distance: between two embeddings.
        stored: (H, W) at which images are decoded before they are brought to the encoder's size.
        fit: how an image of another shape comes to that.
        mirror: whether an image's embedding is the mean of its own and its mirror image's.
        threshold: the largest distance at which two examples are taken to show the same.
        far: the false accept rate that it was chosen for.
        calibrator: from distances to similarities.
    """

    spec: EncoderSpec
    encoder: nn.Module
    distance: Distance = "euclidean"
    stored: tuple[int, int] | None = None
    fit: Fit = "pad"
    mirror: bool = False
    threshold: float | None = None
    far: float | None = None
    calibrator: Calibrator | None = None

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        first = next(self.encoder.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def to(self, device: torch.device) -> Siamese:
        """Move the encoder, in place; what it is given follows."""
        self.encoder.to(device)
        return self

    # --- embeddings -------------------------------------------------------------------------------

    def embed(
        self, examples: Examples, *, batch: int = 256,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Embed stored examples: (N, D) float32 or (N, bits/8) uint8 codes, on the CPU.

        Args:
            examples: images (B, C, H, W) or (B, H, W) uint8 a batch, or ids of a text encoder.
            batch: how many at a time; an embedding does not depend on it, but for last bits.
            progress: called with the examples done and N.
        """
        found = []
        done = 0
        for rows in torch.arange(len(examples)).split(batch):
            found.append(self.encode(self.views(examples.load(rows))).cpu())
            done += len(rows)
            if progress is not None:
                progress(done, len(examples))
        return torch.cat(found)

    def views(self, stored: Tensor) -> Tensor:
        """Stored examples to what the encoder takes."""
        if isinstance(self.spec.inputs, Tokenizer):
            return stored
        size = self.spec.inputs.height, self.spec.inputs.width
        return ImageViews(size)(stored, None)

    @torch.inference_mode()
    def encode(self, inputs: Tensor) -> Tensor:
        """Embed what :meth:`views` gives: (B, ...) -> (B, D), both wherever the encoder is."""
        inputs = inputs.to(self.device)
        if self.distance == "hamming":
            codes: Any = self.encoder
            packed: Tensor = codes.codes(inputs)
            return packed
        embeddings: Tensor = self.encoder(inputs)
        if self.mirror:
            embeddings = (embeddings + self.encoder(inputs.flip(-1))) / 2
        return embeddings.float()

    def embed_images(self, paths: Sequence[Path], **options: Any) -> Tensor:
        """Embed image files: (N, D); InputError names a file that can't be read."""
        return self.embed(self.images(paths), **options)

    def images(self, paths: Sequence[Path]) -> ImageFiles:
        """Image files as the encoder wants them."""
        inputs = self.spec.inputs
        if not isinstance(inputs, InputSpec):
            raise InputError("images: this encoder takes texts")
        decoder = Decoder(self.stored or (inputs.height, inputs.width), inputs.channels, self.fit)
        labels = torch.zeros(len(paths), dtype=torch.int64)
        return ImageFiles(tuple(paths), labels, ("unknown",), decoder)

    def embed_texts(self, texts: Sequence[str], *, batch: int = 256) -> Tensor:
        """Embed sentences: (N, D)."""
        tokenizer = self.spec.inputs
        if not isinstance(tokenizer, Tokenizer):
            raise InputError("texts: this encoder takes images")
        parts = [texts[i : i + batch] for i in range(0, len(texts), batch)]
        return torch.cat([self.encode(tokenizer.encode(list(part))).cpu() for part in parts])

    # --- distances --------------------------------------------------------------------------------

    def distances(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Distance of each row of x1 to the same row of x2: (N, D), (N, D) -> (N,)."""
        if self.distance == "hamming":
            return siamcuda.hamming(x1, x2)
        if self.distance == "l1":
            return (x1 - x2).abs().sum(1)
        if self.distance == "cosine":  # as Gallery and verification.evaluate have it
            unit: Any = torch.ops.siamcuda.gallery_normalize
            half: Tensor = siamcuda.squared_l2(unit(x1), unit(x2)) / 2
            return torch.where((x1 == 0).all(1) | (x2 == 0).all(1), torch.ones_like(half), half)
        squared: Tensor = siamcuda.squared_l2(x1, x2)
        if self.distance == "sqeuclidean":
            return squared
        return torch.from_numpy(np.sqrt(squared.numpy()))  # rounded correctly, as thresholds are

    def compare(self, x1: Tensor, x2: Tensor) -> list[Comparison]:
        """Compare embeddings row by row: (N, D), (N, D) -> N comparisons."""
        distances = self.distances(x1, x2).double()
        similar: Sequence[float | None] = [None] * len(distances)
        if self.calibrator is not None:
            similar = self.calibrator(distances).tolist()
        limit = self.threshold
        return [
            Comparison(d, s, None if limit is None else d <= limit)
            for d, s in zip(distances.tolist(), similar, strict=True)
        ]

    def calibrated(self, report: VerificationReport, far: float) -> Siamese:
        """With the threshold that a report has at ``far``, and a calibrator fitted to it."""
        threshold = float(report.threshold(far))
        calibrator = Calibrator.fit(report)
        return dataclasses.replace(self, threshold=threshold, far=far, calibrator=calibrator)

    # --- files ------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write checkpoint and calibrator; the checkpoint last, since it makes a folder a model."""
        card: dict[str, Any] = {
            "version": _VERSION,
            "spec": self.spec.as_json(),
            "distance": self.distance,
            "stored": self.stored,
            "fit": self.fit,
            "mirror": self.mirror,
            "threshold": self.threshold,
            "far": self.far,
        }
        if self.calibrator is not None:
            self.calibrator.save(folder / CALIBRATOR)
        else:  # an older one would be taken for this system's
            (folder / CALIBRATOR).unlink(missing_ok=True)
        tensors = self.encoder.state_dict()
        card["sha256"] = tensor_digest(tensors, card)
        save_tensors(folder / CHECKPOINT, tensors, {"siamese": json.dumps(card)})

    @classmethod
    def load(cls, folder: Path) -> Siamese:
        """Read what :meth:`save` wrote, from a run folder.

        Raises:
            InputError: there is no such folder, nothing trained in it, or a file is broken.
        """
        path = folder / CHECKPOINT
        if not folder.is_dir():
            raise InputError(f"run: no such folder: {folder}")
        if not path.exists():
            raise InputError(f"run: nothing was trained in {folder} yet: it has no {CHECKPOINT}")
        tensors, metadata = load_tensors(path)
        try:
            card = json.loads(metadata["siamese"])
            version, digest = card["version"], card.pop("sha256")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"checkpoint: {path} holds no system of siamcuda") from error
        if version != _VERSION:
            raise InputError(
                f"checkpoint: {path}: version {version!r}, this build reads {_VERSION}"
            )
        if digest != tensor_digest(tensors, card):
            raise InputError(f"checkpoint: {path} is broken: it changed since it was written")
        del card["version"]
        fields = dict(_checked(path, card))
        spec = EncoderSpec.from_json(fields.pop("spec"))
        encoder = spec.build(seed=0)
        load_weights(encoder, tensors, path)
        calibrator = None
        if (folder / CALIBRATOR).exists():
            try:
                calibrator = Calibrator.load(folder / CALIBRATOR)
            except (OSError, ValueError) as error:
                raise InputError(f"calibrator: {error}") from error
        return cls(spec, encoder.eval(), calibrator=calibrator, **fields)


def _checked(path: Path, card: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a model, each with a value that it may have."""
    known = {f.name: f.default for f in dataclasses.fields(Siamese)}
    if unknown := sorted(card.keys() - known.keys() | {"spec"} - card.keys()):
        raise InputError(f"checkpoint: {path}: unknown or missing field {unknown[0]!r}")

    def number(value: object) -> bool:
        return isinstance(value, float) and not math.isnan(value)

    size = card.get("stored")
    fine = {
        "distance": card.get("distance") in get_args(Distance),
        "fit": card.get("fit") in get_args(Fit),
        "mirror": isinstance(card.get("mirror"), bool),
        "threshold": card.get("threshold") is None or number(card["threshold"]),
        "far": card.get("far") is None or number(card["far"]),
        "stored": size is None
        or (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)),
    }
    for name, right in fine.items():
        if not right:
            raise InputError(f"checkpoint: {path}: {name} is {card.get(name)!r}")
    for name, value in card.items():
        yield name, tuple(value) if name == "stored" and value is not None else value
