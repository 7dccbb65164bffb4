"""An encoder as a file that needs neither this package nor its config: torch.export or ONNX.

Each file is loaded again from the bytes that will be written, and run beside the encoder on batches
of several sizes, before a byte reaches the disk.

>>> from pathlib import Path
>>> from siamcuda.train.encoders import EncoderConfig, EncoderSpec, InputSpec
>>> spec = EncoderSpec(EncoderConfig("fast", options={"width": 4}), InputSpec(1, 28, 28))
>>> report = export_encoder(spec.build(seed=0), spec, Path("encoder.pt2"))  # doctest: +SKIP
>>> report.difference  # doctest: +SKIP
0.0
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siamcuda._files import write_atomically
from siamcuda.train.encoders import ENCODERS, EncoderSpec, Tokenizer
from siamcuda.train.errors import InputError

__all__ = ["BATCHES", "FORMATS", "METADATA", "Exported", "export_encoder"]

#: Sizes of the batches that are compared; exporters fix a size of 1 where they can.
BATCHES = (1, 2, 7, 32)
#: Name under which a file holds the JSON of its EncoderSpec: the tokenizer of a text encoder too.
METADATA = "siamcuda.json"
#: Greatest difference of an output, as a share of the greatest output or of 1.
TOLERANCE = 1e-4
#: What writing and checking ONNX takes.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far its outputs are from the encoder's."""

    path: Path
    size: int  # bytes
    difference: float  # the greatest of any output, on random inputs
    batches: tuple[int, ...]  # sizes of the batches that were compared


def export_encoder(encoder: nn.Module, spec: EncoderSpec, path: Path) -> Exported:
    """Write ``encoder`` to ``path`` in the format that its suffix names: .pt2 or .onnx.

    Batches, and the tokens of a text, may have any number of rows in the file. It embeds as the
    encoder does in evaluation mode; the encoder itself is left as it was.

    Args:
        encoder: the module that ``spec`` describes, with its weights, on any device.
        spec: says what the encoder takes; it is stored in the file under :data:`METADATA`.
        path: file to write, whole or not at all.

    Returns:
        What was written, and the greatest difference found.

    Raises:
        InputError: another suffix, a package that is missing, a module that cannot be exported, or
            outputs that differ. No file is left then; one that was there stays.
    """
    write = FORMATS.get(path.suffix)
    if write is None:
        raise InputError(f"path: {path} ends in none of {', '.join(FORMATS)}")
    copied = copy.deepcopy(encoder).cpu().to(memory_format=torch.contiguous_format).eval()
    copied.requires_grad_(False)
    try:
        with torch.no_grad(), _quietly():
            content, run = write(copied, spec)
            difference = _compare(copied, run, spec, path)
    except InputError:
        raise
    except Exception as error:  # the exporters raise whatever lies below them
        cause = error.__cause__ or error  # which ONNX's exporter wraps in advice
        reason = f"{type(cause).__name__}: {cause}".strip().split("\n", 1)[0]
        raise InputError(f"export: cannot write {path}: {reason}") from error
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"export: cannot write {path}: {error}") from error
    return Exported(path, len(content), difference, BATCHES)


def _write_pt2(encoder: nn.Module, spec: EncoderSpec) -> tuple[bytes, Run]:
    (example,), dimensions = _examples(spec, (2,)), _dynamic(spec)
    program = torch.export.export(encoder, (example,), dynamic_shapes=(dimensions,))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(spec.as_json())})
    content = file.getvalue()
    loaded: Run = torch.export.load(io.BytesIO(content)).module()
    return content, loaded


def _write_onnx(encoder: nn.Module, spec: EncoderSpec) -> tuple[bytes, Run]:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"export: .onnx needs {', '.join(missing)}: pip install 'siamcuda[export]'"
        )
    import onnxruntime  # takes a while, and few exports need it

    (example,), dimensions = _examples(spec, (2,)), _dynamic(spec)
    entry = ENCODERS.get(spec.encoder.name)
    takes = "ids" if isinstance(spec.inputs, Tokenizer) else entry.takes if entry else "images"
    gives = "scores" if takes == "pairs" else "embeddings"
    program = torch.onnx.export(
        encoder,
        (example,),
        dynamo=True,
        dynamic_shapes=(dimensions,),
        input_names=[takes],
        output_names=[gives],
        verbose=False,
    )
    assert program is not None  # None is what the exporter before dynamo returns
    model = program.model_proto
    model.metadata_props.add(key=METADATA, value=json.dumps(spec.as_json()))
    content: bytes = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(rows: Tensor) -> Tensor:
        return torch.from_numpy(session.run([gives], {takes: rows.numpy()})[0])

    return content, run


#: What writes a file, by its suffix: the bytes, and a function that runs what they hold.
FORMATS: dict[str, Callable[[nn.Module, EncoderSpec], tuple[bytes, Run]]] = {
    ".pt2": _write_pt2,
    ".onnx": _write_onnx,
}


def _dynamic(spec: EncoderSpec) -> dict[int, Any]:
    """Dimensions of the input that a file leaves open."""
    dimensions: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if isinstance(spec.inputs, Tokenizer):
        dimensions[1] = torch.export.Dim("tokens", min=1)
    return dimensions


def _examples(spec: EncoderSpec, batches: Sequence[int]) -> Iterator[Tensor]:
    """Random inputs, a batch each; texts of several lengths."""
    for number, rows in enumerate(batches):
        example = spec.example(rows, seed=number)
        if isinstance(spec.inputs, Tokenizer) and number % 2:
            example = example[:, : 1 + number].contiguous()
        yield example


def _compare(encoder: nn.Module, run: Run, spec: EncoderSpec, path: Path) -> float:
    """Return the greatest difference between ``encoder`` and ``run``; InputError if too great."""
    greatest = 0.0
    for rows in _examples(spec, BATCHES):
        expected, found = encoder(rows), run(rows)
        if found.shape != expected.shape:
            raise InputError(
                f"export: {path} gives {tuple(found.shape)} for {tuple(rows.shape)}, "
                f"the encoder {tuple(expected.shape)}; it was not written"
            )
        difference = float((found - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:  # NaN is too great
            raise InputError(
                f"export: {path} differs from the encoder by {difference:g} on a batch of "
                f"{len(rows)}, {allowed:g} is allowed; it was not written"
            )
        greatest = max(greatest, difference)
    return greatest


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold back what the exporters say about packages and layouts that nobody asked for."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
