"""Encoders by name, and how one is built so that its weights depend on a seed alone."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from siamcuda.train.encoders.chopra import ChopraNet
from siamcuda.train.encoders.codes import CodeEncoder
from siamcuda.train.encoders.fast import FastConvNet
from siamcuda.train.encoders.layers import finish
from siamcuda.train.encoders.options import did_you_mean, parameters_of, read_options
from siamcuda.train.encoders.residual import ResidualNet
from siamcuda.train.encoders.small import SmallConvNet
from siamcuda.train.encoders.spec import EncoderConfig, InputSpec
from siamcuda.train.encoders.text import TextEncoder
from siamcuda.train.encoders.tokens import Tokenizer
from siamcuda.train.encoders.two_channel import PatchNet, TwoChannelNet
from siamcuda.train.errors import InputError

__all__ = ["ENCODERS", "EncoderSpec", "Entry", "Inputs", "UnitLength", "build_encoder"]

#: What an encoder takes: images of one size, or texts as ids of a tokenizer.
Inputs = InputSpec | Tokenizer


@dataclass(frozen=True)
class Entry:
    """An encoder of the registry."""

    factory: Callable[..., nn.Module]
    takes: Literal["images", "pairs", "text"]  # pairs: of images, (B, 2, C, H, W)


#: What ``--encoder.name`` takes, beside import paths.
ENCODERS: dict[str, Entry] = {
    "chopra2005": Entry(ChopraNet, "images"),
    "small": Entry(SmallConvNet, "images"),
    "fast": Entry(FastConvNet, "images"),
    "residual": Entry(ResidualNet, "images"),
    "patch": Entry(PatchNet, "images"),
    "two-channel": Entry(TwoChannelNet, "pairs"),
    "text": Entry(TextEncoder, "text"),
}


class UnitLength(nn.Module):
    """Scales what another encoder gives to length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, embedding)."""
        return finish(self.encoder(x), normalize=True)


@dataclass(frozen=True)
class EncoderSpec:
    """All that a run folder must hold to build its encoder again, beside the weights.

    Example:
        >>> spec = EncoderSpec(EncoderConfig("fast", embedding=2), InputSpec(1, 28, 28))
        >>> EncoderSpec.from_json(spec.as_json()) == spec
        True
        >>> spec.build(seed=0)(spec.example(rows=3)).shape
        torch.Size([3, 2])
    """

    encoder: EncoderConfig
    inputs: Inputs

    def build(self, seed: int) -> nn.Module:
        """Build it: :func:`build_encoder`."""
        return build_encoder(self.encoder, self.inputs, seed)

    def example(self, rows: int, seed: int = 0) -> Tensor:
        """Random inputs: (rows, C, H, W) or (rows, 2, C, H, W) in [0, 1), or ids (rows, L)."""
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.inputs, Tokenizer):
            shape = rows, min(12, self.inputs.length)
            ids = torch.randint(1, self.inputs.size, shape, generator=generator)
            # rows of different lengths, the first of them whole
            lengths = shape[1] - torch.arange(rows) % shape[1]
            return ids.masked_fill(torch.arange(shape[1]) >= lengths.unsqueeze(1), 0)
        entry = ENCODERS.get(self.encoder.name)
        pair = (2,) if entry is not None and entry.takes == "pairs" else ()
        return torch.rand(rows, *pair, *self.inputs.shape, generator=generator)

    def as_json(self) -> dict[str, Any]:
        """What :meth:`from_json` takes."""
        kind = "text" if isinstance(self.inputs, Tokenizer) else "images"
        return {"encoder": self.encoder.as_json(), "inputs": {kind: self.inputs.as_json()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EncoderSpec:
        """Read what :meth:`as_json` gave; InputError names what is unknown or unusable."""
        kinds: dict[str, type[InputSpec] | type[Tokenizer]] = {
            "images": InputSpec,
            "text": Tokenizer,
        }
        if not isinstance(content, Mapping):
            raise InputError(f"spec: an object is expected, found {type(content).__name__}")
        inputs, encoder = content.get("inputs"), content.get("encoder", {})
        if not isinstance(inputs, Mapping) or len(inputs) != 1 or not inputs.keys() <= kinds.keys():
            raise InputError(f"inputs: one of {', '.join(kinds)} is expected, found {inputs!r}")
        ((kind, fields),) = inputs.items()
        return cls(EncoderConfig.from_json(encoder), kinds[kind].from_json(fields))


def build_encoder(config: EncoderConfig, inputs: Inputs, seed: int) -> nn.Module:
    """Build an encoder with weights that depend on ``seed`` alone; no generator is disturbed.

    Args:
        config: which, and its options.
        inputs: what it takes.
        seed: of the weights.

    Returns:
        A module in training mode, on the CPU, convolutions in channels_last: (B, ...) ->
        (B, embedding); with ``config.bits`` (B, bits); of pairs (B,).

    Raises:
        InputError: an unknown name (with a suggestion), an unusable option, inputs that are too
            small; an import path that cannot be imported or whose module does not fit.

    Example:
        >>> build_encoder(EncoderConfig("residual"), InputSpec(3, 64, 64), seed=0).training
        True
    """
    entry = ENCODERS.get(config.name)
    if entry is None and ":" not in config.name:
        raise InputError(
            f"encoder: {config.name!r} is none of {', '.join(ENCODERS)}, nor an import path "
            f'"package.module:Class"{did_you_mean(config.name, ENCODERS)}'
        )
    # the CPU's generator alone: torch.manual_seed would seed those of the GPUs too
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        encoder = _imported(config, inputs) if entry is None else _registered(entry, config, inputs)
        if config.bits is not None:
            encoder = CodeEncoder(encoder, config.embedding, config.bits)
    tensors = itertools.chain(encoder.parameters(), encoder.buffers())
    if any(tensor.dim() == 5 for tensor in tensors):  # which channels_last has no order for
        return encoder
    return encoder.to(memory_format=torch.channels_last)


def _registered(entry: Entry, config: EncoderConfig, inputs: Inputs) -> nn.Module:
    if isinstance(inputs, Tokenizer) != (entry.takes == "text"):
        wanted = "texts (a Tokenizer)" if entry.takes == "text" else "images (an InputSpec)"
        raise InputError(f"inputs: {config.name} takes {wanted}, got {type(inputs).__name__}")
    options = read_options(config.name, entry.factory, config.options)
    if entry.takes == "pairs":
        for name in ("normalize", "bits"):
            if getattr(config, name) is not None:
                raise InputError(f"{name}: {config.name} gives a score, not an embedding")
        return entry.factory(inputs, **options)
    if config.normalize is not None:
        options["normalize"] = config.normalize
    return entry.factory(config.embedding, inputs, **options)


def _imported(config: EncoderConfig, inputs: Inputs) -> nn.Module:
    """Import, make and try a module that is not ours."""
    module, _, name = config.name.partition(":")
    try:
        factory: Any = importlib.import_module(module)
        for part in name.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # whatever somebody else's module raises when it is imported
        raise InputError(f"encoder: cannot import {config.name!r}: {error}") from error
    if not callable(factory):
        raise InputError(f"encoder: {config.name!r} is no class or function, but {factory!r}")
    arguments = read_options(config.name, factory, config.options)
    takes = parameters_of(config.name, factory)
    given = {"embedding": config.embedding, "inputs": inputs}
    arguments |= {name: value for name, value in given.items() if name in takes}
    if "normalize" in takes and config.normalize is not None:
        arguments["normalize"] = config.normalize
    try:
        encoder = factory(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"encoder: {config.name!r} cannot be made: {error}") from error
    if not isinstance(encoder, nn.Module):
        raise InputError(
            f"encoder: {config.name!r} gives {type(encoder).__name__}, not a torch.nn.Module"
        )
    _try(encoder, config, inputs)
    made: nn.Module = encoder
    if config.normalize and "normalize" not in takes:
        made = UnitLength(made)
    return made


@torch.no_grad()
def _try(encoder: nn.Module, config: EncoderConfig, inputs: Inputs) -> None:
    """Raise InputError where two rows do not become (2, embedding)."""
    example = EncoderSpec(config, inputs).example(rows=2)
    training = encoder.training
    try:
        output = encoder.eval()(example)
    except Exception as error:
        raise InputError(
            f"encoder: {config.name!r} fails on inputs {tuple(example.shape)}: {error}"
        ) from error
    finally:
        encoder.train(training)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (2, config.embedding):
        raise InputError(
            f"encoder: {config.name!r} gives {shape} for inputs {tuple(example.shape)}; "
            f"(2, {config.embedding}) is expected: one embedding a row"
        )
