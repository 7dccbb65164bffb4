"""What ranks of a process group do together, started by torchrun or however you like.

:mod:`siamcuda.distributed.losses` has the losses over the joined batch of all ranks.
"""

from siamcuda.distributed import losses
from siamcuda.distributed.losses import *

__all__ = [*losses.__all__]
