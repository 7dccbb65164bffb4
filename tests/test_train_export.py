"""Exported encoders: what a file gives, what it holds, and that a bad one is never written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siamcuda.train import export
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, InputSpec, Tokenizer
from siamcuda.train.errors import InputError
from siamcuda.train.export import METADATA, export_encoder

DIGITS = InputSpec(1, 28, 28)
#: One of each kind of input and layer.
CASES = {
    "chopra2005": EncoderSpec(EncoderConfig("chopra2005", 5, options={"maps": "5,6,7"}), DIGITS),
    "small": EncoderSpec(EncoderConfig("small", 5, options={"width": 4}), DIGITS),
    "fast-codes": EncoderSpec(EncoderConfig("fast", 5, bits=16, options={"width": 4}), DIGITS),
    "residual": EncoderSpec(
        EncoderConfig("residual", 5, options={"widths": "4,6", "norm": "group"}), DIGITS
    ),
    "two-channel": EncoderSpec(
        EncoderConfig("two-channel", options={"width": 4, "stride": 1}), InputSpec(1, 26, 26)
    ),
    "text": EncoderSpec(
        EncoderConfig("text", 5, options={"width": 6, "hidden": 7}), Tokenizer(buckets=40)
    ),
}


class Awkward(nn.Module):
    """Fits as an encoder, and fails as an export."""

    def __init__(self, embedding: int, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(784, embedding)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(images.flatten(1))
        if self.how == "depends" and float(out.sum()) > 0:
            return out + 1
        if self.how == "other" and torch.compiler.is_exporting():
            return out + 0.01
        if self.how == "nan" and torch.compiler.is_exporting():
            return out * float("nan")
        return out


def awkward(how: str) -> EncoderSpec:
    return EncoderSpec(EncoderConfig(f"{__name__}:Awkward", 4, options={"how": how}), DIGITS)


@pytest.mark.parametrize("name", CASES)
def test_torch_export_gives_the_same(name: str, tmp_path: Path) -> None:
    spec = CASES[name]
    encoder = spec.build(seed=3)
    report = export_encoder(encoder, spec, tmp_path / "e.pt2")
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert report.difference <= 1e-5
    assert report.size == (tmp_path / "e.pt2").stat().st_size
    extra = {METADATA: ""}
    program = torch.export.load(str(tmp_path / "e.pt2"), extra_files=extra)
    assert EncoderSpec.from_json(json.loads(extra[METADATA])) == spec
    rows = spec.example(13, seed=9)
    torch.testing.assert_close(program.module()(rows), encoder.eval()(rows))


@pytest.mark.parametrize("name", CASES)
def test_onnx_gives_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    spec = CASES[name]
    encoder = spec.build(seed=3)
    report = export_encoder(encoder, spec, tmp_path / "e.onnx")
    assert report.difference <= 1e-5
    model = onnx.load(str(tmp_path / "e.onnx"))
    onnx.checker.check_model(model, full_check=True)
    stored = {item.key: item.value for item in model.metadata_props}
    assert EncoderSpec.from_json(json.loads(stored[METADATA])) == spec
    session = onnxruntime.InferenceSession(str(tmp_path / "e.onnx"))
    (first,) = session.get_inputs()
    assert first.name == {"two-channel": "pairs", "text": "ids"}.get(name, "images")
    assert first.shape[0] == "batch"
    assert list(tmp_path.iterdir()) == [tmp_path / "e.onnx"]
    rows = spec.example(13, seed=9)
    (found,) = session.run(None, {first.name: rows.numpy()})
    expected = encoder.eval()(rows).detach()
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("other", r"differs from the encoder by 0\.01.* it was not written"),
        ("nan", "differs from the encoder by nan"),
        ("depends", r"cannot write .*e\.pt2: "),
    ],
)
def test_a_file_that_would_differ_is_not_written(how: str, message: str, tmp_path: Path) -> None:
    spec = awkward(how)
    (tmp_path / "e.pt2").write_bytes(b"old")
    with pytest.raises(InputError, match=message):
        export_encoder(spec.build(seed=0), spec, tmp_path / "e.pt2")
    assert (tmp_path / "e.pt2").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "e.pt2"]


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = awkward("")
    encoder = spec.build(seed=0)
    with pytest.raises(InputError, match=r"e\.tflite ends in none of \.pt2, \.onnx"):
        export_encoder(encoder, spec, tmp_path / "e.tflite")
    with pytest.raises(InputError, match=r"cannot write .*nowhere"):
        export_encoder(encoder, spec, tmp_path / "nowhere" / "e.pt2")

    def full(_handle: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="disk full"):
            export_encoder(encoder, spec, tmp_path / "e.pt2")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = export.importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name == "onnxscript" else found(name)

    monkeypatch.setattr(export.importlib.util, "find_spec", find)
    spec = awkward("")
    with pytest.raises(InputError, match=r"onnx needs .*onnxscript.*siamcuda\[export\]"):
        export_encoder(spec.build(seed=0), spec, tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []
