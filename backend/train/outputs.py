"""Where a run's files go: names as the reference trainer gives them, and the checks made before anything is trained."""

import os
import re
import shlex
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from backend.config.training.save import Save
from backend.config.training.state import State
from backend.errors import UserError
from backend.replacing import remove_leftovers, replacing
from backend.states import POSITION, check_state


@dataclass(frozen=True)
class Outputs:
    """The files of one run.

    Attributes:
        folder: where they go.
        name: file name of the LoRA without folder and extension.
        extension: safetensors, ckpt or pt.
    """

    folder: Path
    name: str
    extension: str = "safetensors"

    @property
    def final(self) -> Path:
        """The file that a finished run leaves."""
        return self.folder / f"{self.name}.{self.extension}"

    def epoch(self, epoch: int) -> Path:
        """The file after `epoch` epochs, counted from 1."""
        return self.folder / f"{self.name}-{epoch:06d}.{self.extension}"

    def step(self, step: int) -> Path:
        """The file after `step` steps."""
        return self.folder / f"{self.name}-step{step:08d}.{self.extension}"

    @property
    def final_state(self) -> Path:
        """The folder of the state at the end of a run."""
        return self.folder / f"{self.name}-state"

    def epoch_state(self, epoch: int) -> Path:
        """The folder of the state after `epoch` epochs, counted from 1."""
        return self.folder / f"{self.name}-{epoch:06d}-state"

    def step_state(self, step: int) -> Path:
        """The folder of the state after `step` steps."""
        return self.folder / f"{self.name}-step{step:08d}-state"

    @property
    def config(self) -> Path:
        """The resolved config that the run was made with."""
        return self.folder / f"{self.name}.config.toml"

    def sample(self, moment: str, index: int, seed: int) -> Path:
        """Sample picture number `index` at a moment such as `e000002` or `000100` (steps)."""
        return self.folder / "sample" / f"{self.name}_{moment}_{index:02d}_{seed}.png"

    def prepare(self, overwrite: bool) -> None:
        """Make the folder and see that the run will be able to write.

        Raises:
            UserError: a file of this name is there already and may not be replaced, or the folder is not writable.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"{self.folder} cannot be written to ({reason}); choose another"
            raise UserError(message, field="output_dir") from None
        existing = self.existing()
        if existing and not overwrite:
            state = self.newest_state()
            more = f"; or go on from where it ended with --resume {shlex.quote(str(state))}" if state else ""
            raise UserError(
                f"{existing[0]} exists already; set overwrite to replace it, or choose another name{more}",
                field="output_name",
            )
        # Of several processes the first alone writes, and may have begun to.
        if os.environ.get("RANK", "0") == "0":
            remove_leftovers(self.folder, self._names(rf"\.{self.extension}|-state|\.config\.toml"))

    def existing(self) -> list[Path]:
        """Files of earlier runs of this name that this one might replace."""
        pattern = self._names(rf"\.{self.extension}")
        return sorted(path for path in self.folder.iterdir() if pattern.fullmatch(path.name))

    def newest_state(self) -> Path | None:
        """The state that was written last by runs of this name, if there is one to go on from."""
        pattern = self._names("-state")
        found = [path / POSITION for path in self.folder.iterdir() if pattern.fullmatch(path.name)]
        for position in sorted(filter(Path.is_file, found), key=lambda path: path.stat().st_mtime, reverse=True):
            with suppress(UserError):
                check_state(position.parent)
                return position.parent
        return None

    def command_to_resume(self, state: Path) -> str:
        """What a shell is given to let this run go on from a state."""
        words = ["python", "-m", "backend", "train_network", "--config_file", str(self.config), "--resume", str(state)]
        return shlex.join(words)

    def _names(self, ending: str) -> re.Pattern[str]:
        """Names of this run's files that end in a pattern."""
        return re.compile(rf"{re.escape(self.name)}(-\d{{6}}|-step\d{{8}})?({ending})")


@dataclass
class Saved:
    """Where a run has saved on the way to its end, as far as it has not removed that again.

    Attributes:
        epochs, steps: after which there is a file.
        epoch_states, step_states: after which there is a state.
    """

    epochs: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    epoch_states: list[int] = field(default_factory=list)
    step_states: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class SavePlan:
    """When a run saves on the way to its end, and which of these files it keeps.

    Attributes:
        every_epochs, every_steps: save after so many; None is never.
        last_epochs: keep so many of the files saved after epochs; None is all.
        last_steps: keep the files saved within the last so many steps; None is all.
        states: with every file a state too.
        last_epoch_states, last_step_states: the same of the states.
    """

    every_epochs: int | None = None
    every_steps: int | None = None
    last_epochs: int | None = None
    last_steps: int | None = None
    states: bool = False
    last_epoch_states: int | None = None
    last_step_states: int | None = None

    @classmethod
    def of(cls, options: Save, state: State, epochs: int) -> "SavePlan":
        """What the options mean for a run of so many epochs."""
        ratio = options.save_n_epoch_ratio
        every_epochs = max(1, epochs // ratio) if ratio else options.save_every_n_epochs
        last = options.save_last_n_epochs, options.save_last_n_steps
        last_states = state.save_last_n_epochs_state or last[0], state.save_last_n_steps_state or last[1]
        return cls(every_epochs, options.save_every_n_steps, *last, state.save_state, *last_states)

    def after_epoch(self, epoch: int) -> bool:
        """Whether to save after so many epochs."""
        return bool(self.every_epochs) and epoch % self.every_epochs == 0

    def after_step(self, step: int) -> bool:
        """Whether to save after so many steps."""
        return bool(self.every_steps) and step % self.every_steps == 0


def old_epochs(saved: Collection[int], last: int | None) -> list[int]:
    """Of the epochs that were saved, the newest among them, those that are to go where `last` are kept; None is all."""
    return sorted(saved)[:-last] if last else []


def old_steps(saved: Collection[int], last: int | None) -> list[int]:
    """Of the steps that were saved, the newest among them, those before the last so many steps; None keeps all."""
    return [step for step in sorted(saved) if last and step < max(saved) - last]


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name beside it, then rename."""
    with replacing(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
