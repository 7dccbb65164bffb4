"""Losses and galleries over the ranks of a process group, started by torchrun or however you like.

:mod:`siamcuda.distributed.losses` has the losses over the joined batch of all ranks,
:mod:`siamcuda.distributed.gallery` exact search in vectors that are spread over them. Each rank
passes its own rows and gets the answer that one process with all rows would give. All calls are
collective: every rank of the group makes them, in the same order. What is wrong on one rank raises
on all and names it; a rank that is gone raises on the others at the latest after the group's
timeout.
"""

from siamcuda.distributed import gallery, losses
from siamcuda.distributed.gallery import *
from siamcuda.distributed.losses import *

__all__ = gallery.__all__ + losses.__all__
