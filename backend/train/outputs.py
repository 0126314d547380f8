"""Where a run's files go: names as the reference trainer gives them, and the checks made before anything is trained."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from backend.errors import UserError
from backend.replacing import replacing


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
        """The file of a run that was stopped after `step` steps."""
        return self.folder / f"{self.name}-step{step:08d}.{self.extension}"

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
            raise UserError(
                f"{existing[0]} exists already; set overwrite to replace it, or choose another name",
                field="output_name",
            )

    def existing(self) -> list[Path]:
        """Files of earlier runs of this name that this one might replace."""
        pattern = re.compile(rf"{re.escape(self.name)}(-\d{{6}}|-step\d{{8}})?\.{self.extension}")
        return sorted(path for path in self.folder.iterdir() if pattern.fullmatch(path.name))


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name beside it, then rename."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
