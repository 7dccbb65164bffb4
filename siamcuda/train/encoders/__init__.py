"""Encoders: a batch in, one embedding a row out; and how one is chosen, built and built again.

Encoders of images take float (N, C, H, W) in [0, 1] and standardise each image by itself, so that
brightness and contrast of the camera do not reach the first layer. docs/encoders.md compares them.
"""

from __future__ import annotations

from siamcuda.train.encoders.chopra import ChopraNet
from siamcuda.train.encoders.codes import CodeEncoder
from siamcuda.train.encoders.edge import EdgeNet
from siamcuda.train.encoders.fast import FastConvNet
from siamcuda.train.encoders.heads import Branches, DifferenceClassifier
from siamcuda.train.encoders.registry import ENCODERS, EncoderSpec, Inputs, build_encoder
from siamcuda.train.encoders.residual import ResidualNet
from siamcuda.train.encoders.small import SmallConvNet
from siamcuda.train.encoders.spec import FACES, INPUT_SIZE, EncoderConfig, InputSpec
from siamcuda.train.encoders.text import TextEncoder
from siamcuda.train.encoders.tokens import Tokenizer
from siamcuda.train.encoders.two_channel import PatchNet, TwoChannelNet

__all__ = [
    "ENCODERS",
    "FACES",
    "INPUT_SIZE",
    "Branches",
    "ChopraNet",
    "CodeEncoder",
    "DifferenceClassifier",
    "EdgeNet",
    "EncoderConfig",
    "EncoderSpec",
    "FastConvNet",
    "InputSpec",
    "Inputs",
    "PatchNet",
    "ResidualNet",
    "SmallConvNet",
    "TextEncoder",
    "Tokenizer",
    "TwoChannelNet",
    "build_encoder",
]
