"""``siamcuda export RUN``: the encoder as a file that needs neither the run nor this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor, nn
from tyro.conf import Positional, arg

from siamcuda._commands.inputs import check_outputs
from siamcuda._commands.parsing import parse
from siamcuda._commands.runs import open_run
from siamcuda.train.errors import InputError

__all__ = ["Export", "main", "run"]


@dataclass(frozen=True)
class Export:
    """Write a run's encoder as ONNX or torch.export, checked by running it."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """folder of a trained run"""
    out: Annotated[Path, arg(aliases=["-o"], metavar="PATH")]  # .onnx or .pt2


class _Mirrored(nn.Module):
    """Embeds as the run does: the mean of an image's embedding and its mirror image's."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        embeddings: Tensor = (self.encoder(x) + self.encoder(x.flip(-1))) / 2
        return embeddings


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse(Export, "export", arguments))


def run(options: Export) -> None:
    """Do what the options ask; raises InputError for what can't be used."""
    from siamcuda.train.export import FORMATS, export_encoder
    from siamcuda.train.siamese import CALIBRATOR, CHECKPOINT

    if options.out.suffix not in FORMATS:
        raise InputError(f"out: {options.out} must end in {' or '.join(FORMATS)}")
    inputs = [options.run / CHECKPOINT, options.run / CALIBRATOR]
    check_outputs([("out", options.out)], inputs)
    siamese = open_run(options.run)
    encoder = _Mirrored(siamese.encoder) if siamese.mirror else siamese.encoder
    written = export_encoder(encoder, siamese.spec, options.out)
    batches = ", ".join(map(str, written.batches))
    print(f"{written.path}: {written.size:,} bytes")
    print(f"largest difference from the encoder: {written.difference:.2g} (batches of {batches})")
    if siamese.mirror:
        print("an embedding is the mean of an image's and its mirror image's, as in the run")
    if siamese.distance == "hamming":
        print("it gives +1 or -1 a bit; siamcuda.pack_bits packs them for a search")
