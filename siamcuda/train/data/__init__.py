"""Examples to train on: images in memory and on disk, pairs, texts, and data inside packages.

Every class here is what :class:`siamcuda.train.system.Examples` asks for. What can't be used (a
folder, a file, a row of a table) raises :class:`siamcuda.train.errors.InputError`, which names it.
Nothing is unpickled, and headers are compared with sizes before they are believed.
"""

from typing import TYPE_CHECKING

from siamcuda.train.data import (
    arrays,
    faces,
    folders,
    idx,
    letters,
    mnist,
    omniglot,
    pairs,
    photographs,
    pictures,
    signatures,
    text,
    text_sets,
    windows,
)
from siamcuda.train.data.arrays import *
from siamcuda.train.data.faces import *
from siamcuda.train.data.folders import *
from siamcuda.train.data.idx import *
from siamcuda.train.data.letters import *
from siamcuda.train.data.mnist import *
from siamcuda.train.data.omniglot import *
from siamcuda.train.data.pairs import *
from siamcuda.train.data.photographs import *
from siamcuda.train.data.pictures import *
from siamcuda.train.data.signatures import *
from siamcuda.train.data.text import *
from siamcuda.train.data.text_sets import *
from siamcuda.train.data.windows import *

__all__ = (
    arrays.__all__
    + faces.__all__
    + folders.__all__
    + idx.__all__
    + letters.__all__
    + mnist.__all__
    + omniglot.__all__
    + pairs.__all__
    + photographs.__all__
    + pictures.__all__
    + signatures.__all__
    + text.__all__
    + text_sets.__all__
    + windows.__all__
)

if TYPE_CHECKING:  # mypy proves that each class is what a trainer takes
    from siamcuda.train.augment import ImageViews
    from siamcuda.train.system import Examples, Transform

    _transform: Transform = ImageViews((1, 1))
    _examples: list[type[Examples]] = [
        arrays.ImageArray,
        folders.ImageFiles,
        folders.ImageFolder,
        pairs.PairFile,
        signatures.Signatures,
        text.TextPairs,
        windows.WindowPairs,
    ]
