"""Which of the processes of a run this is: what torchrun and accelerate's launcher say in the environment.

The first process alone writes files, events and lines; `is_first` is asked by all that tell something.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

# Names the number of the open socket at which our launcher's first process lets the others find it.
MEETING = "LORALOOM_MEETING_SOCKET"


@dataclass(frozen=True)
class Place:
    """One process among those that train together.

    Attributes:
        rank: its number, from 0, and `size` how many there are.
        local_rank, local_size: the same among those of its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def machines(self) -> int:
        """How many machines take part, as far as each has as many processes as this one."""
        return -(-self.size // self.local_size)


def place(environment: Mapping[str, str] | None = None) -> Place:
    """The place that the environment tells; that of a single process where it tells none."""
    told = os.environ if environment is None else environment
    try:
        size, rank = int(told["WORLD_SIZE"]), int(told["RANK"])
        local = int(told.get("LOCAL_RANK", rank)), int(told.get("LOCAL_WORLD_SIZE", size))
    except (KeyError, ValueError):
        return Place()
    return Place(rank, size, *local) if 0 <= rank < size and local[1] > 0 else Place()


def is_launched(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a launcher has started this process as one of several, or of one."""
    told = os.environ if environment is None else environment
    return "WORLD_SIZE" in told and "RANK" in told


def is_first() -> bool:
    """Whether this process is the one that tells and writes."""
    return place().rank == 0
