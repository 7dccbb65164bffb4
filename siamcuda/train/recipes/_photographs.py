"""Which of scikit-image's photographs are learned from, validated on and tested on."""

from __future__ import annotations

from torch import Tensor

from siamcuda.train.data import TEXTURES, load_photographs, load_textures

__all__ = ["TESTED", "VALIDATED", "read_photographs"]

#: Never learned from; the stereo pair isn't either.
TESTED = ("chelsea.png", "coffee.png")
#: Where settings are chosen: with ``validate`` they are tested on in place of the others, and not
#: learned from.
VALIDATED = ("camera.png", "rocket.jpg")
_LEARNED = ("astronaut.png", "coins.png", "hubble_deep_field.jpg", "moon.png")


def read_photographs(validate: bool, channels: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pictures to learn from, and to test on, by their names: (channels, H, W) uint8 each."""
    known = load_photographs(_LEARNED if validate else _LEARNED + VALIDATED, channels)
    textures = load_textures(TEXTURES)
    known |= {name: grey.expand(channels, -1, -1) for name, grey in textures.items()}
    return known, load_photographs(VALIDATED if validate else TESTED, channels)
