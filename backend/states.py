"""The folder of a run's state, as the trainer, which goes on from it, and the web side both see it. Knows no torch."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backend.bounded import open_regular, read_json
from backend.errors import UserError
from backend.header import read_header
from backend.replacing import restore

POSITION, NETWORK, OPTIMIZER = "state.json", "network.safetensors", "optimizer.pt"
SAVED = ("epochs", "steps", "epoch_states", "step_states")


@dataclass(frozen=True)
class Position:
    """Where in a run a state was taken.

    Attributes:
        step: optimizer steps done.
        epochs_done: epochs that are over, with all that is done at their ends.
        total_steps: of the whole run.
        seed: of the run's draws.
        pictures: a short text that another training set would give another of.
        saved: epochs and steps whose files, and whose states, this run has written and not removed, by kind.
    """

    step: int
    epochs_done: int
    total_steps: int
    seed: int
    pictures: str
    saved: Mapping[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [self.step, self.epochs_done, self.total_steps, self.seed]
        if not isinstance(self.saved, dict) or not all(isinstance(found, list) for found in self.saved.values()):
            raise ValueError("saved is no table of lists")
        if unknown := self.saved.keys() - set(SAVED):
            raise ValueError(f"saved has {min(unknown)}")
        numbers += [number for found in self.saved.values() for number in found]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a number is none")

    def epochs_over(self, steps_per_epoch: int) -> int:
        """Epochs that are over where an epoch has so many steps, with other pictures say."""
        whole = self.step // steps_per_epoch
        # At the end of an epoch what is done there may be still to come.
        before_its_end = self.step % steps_per_epoch == 0 and self.epochs_done == whole - 1
        return whole - 1 if before_its_end else whole


def read_position(folder: Path) -> Position:
    """Where the run of a state folder was.

    Raises:
        UserError: it is no state of ours.
    """
    restore(folder)
    try:
        if not (folder / POSITION).exists():
            raise FileNotFoundError
        return Position(**read_json(folder / POSITION, None))
    except (FileNotFoundError, NotADirectoryError):
        hint = "a state is a folder that ends in -state, beside the LoRA files of its run"
        raise UserError(f"there is no state in {folder}; {hint}", field="resume") from None
    except (OSError, ValueError, TypeError, UserError) as error:
        raise UserError(f"the state in {folder} cannot be read ({error})", field="resume") from None


def check_state(folder: Path) -> Position:
    """As `read_position`, and see that the other files are there and whole, as far as their headers tell.

    Raises:
        UserError: it is no state of ours, or not whole.
    """
    position = read_position(folder)
    try:
        read_header(folder / NETWORK)
        with open_regular(folder / OPTIMIZER) as file, zipfile.ZipFile(file):
            return position
    except UserError as error:
        raise UserError(f"the state in {folder} cannot be read ({NETWORK} {error.message})", "resume") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"the state in {folder} cannot be read ({OPTIMIZER}: {error})", field="resume") from None
