"""What is built, from what: a config of an encoder and a description of its input, both JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from siamcuda.train.errors import InputError

__all__ = ["FACES", "INPUT_SIZE", "EncoderConfig", "InputSpec", "Option"]

#: Height and width that Chopra, Hadsell and LeCun give their network: AT&T faces, halved.
INPUT_SIZE = (56, 46)

#: A value of an option. Sequences are written "32,64,128", which a command line has too.
Option = int | float | bool | str

T = TypeVar("T")


@dataclass(frozen=True)
class InputSpec:
    """The size of the images that an encoder takes: float (N, channels, height, width) in [0, 1].

    Example:
        >>> InputSpec(1, 28, 28).shape
        (1, 28, 28)
    """

    channels: int = 1
    height: int = INPUT_SIZE[0]
    width: int = INPUT_SIZE[1]

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"inputs.{name}: an integer of at least 1 is expected: {value!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    def as_json(self) -> dict[str, Any]:
        """What :meth:`from_json` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> InputSpec:
        """Read what :meth:`as_json` gave; InputError names what is unknown or unusable."""
        return from_fields(cls, content, "inputs")


#: What the encoders of faces take.
FACES = InputSpec(1, *INPUT_SIZE)


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder, and how it is made. With an :class:`InputSpec` and a seed it is a network.

    Example:
        >>> config = EncoderConfig("residual", options={"widths": "16,32", "norm": "group"})
        >>> EncoderConfig.from_json(config.as_json()) == config
        True
    """

    name: str = "small"  # a name of the registry, or "package.module:Class" of your own
    embedding: int = 128  # length of the embedding
    normalize: bool | None = None  # embeddings of length 1; None: as the encoder has it by default
    bits: int | None = None  # a head of so many binary outputs on the embedding; None: no head
    options: dict[str, Option] = field(default_factory=dict)  # of this encoder alone: width 32

    def __post_init__(self) -> None:
        for name in ("embedding", "bits"):
            value = getattr(self, name)
            if name == "bits" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}: an integer of at least 1 is expected: {value!r}")
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"encoder: a name is expected: {self.name!r}")
        if self.normalize is not None and not isinstance(self.normalize, bool):
            raise InputError(f"normalize: true, false or nothing is expected: {self.normalize!r}")
        if not isinstance(self.options, Mapping):
            raise InputError(f"options: names with values are expected: {self.options!r}")
        for name, value in self.options.items():
            if not isinstance(value, int | float | bool | str) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise InputError(f"options.{name}: a number or a text is expected: {value!r}")

    def as_json(self) -> dict[str, Any]:
        """What :meth:`from_json` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EncoderConfig:
        """Read what :meth:`as_json` gave; InputError names what is unknown or unusable."""
        return from_fields(cls, content, "encoder")


def from_fields(cls: type[T], content: Any, what: str) -> T:
    """Make a dataclass of a JSON object; fields that are not there have their defaults."""
    if not isinstance(content, Mapping):
        raise InputError(f"{what}: an object is expected, found {type(content).__name__}")
    # Both callers give a dataclass; a TypeVar can't be bound to "some dataclass".
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    unknown = [name for name in content if name not in known]
    if unknown:
        raise InputError(f"{what}: unknown setting {unknown[0]!r}; it has {', '.join(known)}")
    return cls(**content)
