"""The folder in which everything of a user lives: datasets, models, LoRAs, presets, jobs, outputs."""

import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from backend.bounded import read_toml
from backend.errors import UserError
from backend.header import read_header

PROJECT = Path(__file__).resolve().parent.parent
DEMO_MODEL = "backend/demo/model"
DEMO_DATASET = "backend/demo/dataset"
VARIABLE = "LORALOOM_WORKSPACE"
SECRETS = ("LORALOOM_PASSWORD", "LORALOOM_USERNAME")
FOLDERS = ("jobs", "datasets", "models", "loras", "presets", "outputs")
WEIGHTS = (".safetensors", ".ckpt", ".pt")
DATASET_FILE = "dataset.toml"
CHECKPOINT, LORA = "checkpoint", "LoRA"
CHECKPOINT_PREFIX = "model.diffusion_model."
# Somewhere in every tensor's name: LoRA in the spellings of all trainers, LoHa, LoKr.
LORA_MARKS = ("lora", "hada_", "lokr_", "alpha")

_SLUG_LENGTH = 80
_DEVICE_NAMES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}


def default_root() -> Path:
    """The workspace when none is named: what LORALOOM_WORKSPACE says, else `workspace` in the project."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else PROJECT / "workspace"


def slug(name: str, field: str = "name") -> str:
    """Check that a name is safe as one path component on every system, and give it back trimmed.

    Letters and digits of any script, space, dot, dash, underscore and plus are allowed; the first
    character is a letter or digit.

    Raises:
        UserError: naming what is not allowed.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise UserError("give a name", field)
    if len(name.encode("utf-8", "replace")) > _SLUG_LENGTH * 2 or len(name) > _SLUG_LENGTH:
        raise UserError(f"a name has at most {_SLUG_LENGTH} characters", field)
    if not re.fullmatch(r"\w[\w .+-]*", name) or name[0] == "_" or name.endswith("."):
        raise UserError(
            f"{name!r} is not a name: use letters, digits, space and . - _ +, beginning with a letter or digit", field
        )
    if name.split(".")[0].lower() in _DEVICE_NAMES:
        raise UserError(f"{name!r} is reserved by some systems; choose another name", field)
    return name


def make_slug(text: str, fallback: str = "untitled") -> str:
    """Turn any text, an uploaded file's name say, into a name that `slug` accepts."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[^\w.+-]+", "_", text).strip("._+- ")[:_SLUG_LENGTH].rstrip("._+- ")
    while len(text.encode()) > _SLUG_LENGTH * 2:
        text = text[:-1]
    if not text:
        return fallback
    return f"{text}_" if text.split(".")[0].lower() in _DEVICE_NAMES and "." not in text else text


class Workspace:
    """A workspace on disk; its folders are made when it is opened.

    Args:
        root: the folder; relative paths count from the working directory.

    Raises:
        UserError: when it cannot be made or written to.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root).expanduser().resolve() if root is not None else default_root().resolve()
        try:
            for name in FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.root}: {error.strerror}; name another folder", "workspace") from error
        if not os.access(self.root / "jobs", os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {self.root}; name another folder", "workspace")
        self.jobs = self.root / "jobs"
        self.datasets = self.root / "datasets"
        self.models = self.root / "models"
        self.loras = self.root / "loras"
        self.presets = self.root / "presets"
        self.outputs = self.root / "outputs"

    def resolve(self, *parts: str | os.PathLike[str], field: str = "path") -> Path:
        """Join path parts onto the root, links resolved, and make sure that the result is still inside.

        Raises:
            UserError: when the path leaves the workspace.
        """
        try:
            path = self.root.joinpath(*parts).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError("is not a path", field) from error
        if not path.is_relative_to(self.root):
            raise UserError("lies outside the workspace", field)
        return path

    def environment(self) -> dict[str, str]:
        """What a child process that works in this workspace finds in its environment: everything but our password."""
        inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
        return {**inherited, VARIABLE: str(self.root), "PYTHONUNBUFFERED": "1"}

    def list_models(self) -> list[tuple[str, str]]:
        """Base models as (label, path): the demo model, what merges have written, newest first, then `models`.

        In `models` these are single files and Diffusers folders; a LoRA that has come there is left out.
        """
        found = [
            (f"models/{path.relative_to(self.models)}", str(path))
            for path in self._find_models()
            if path.is_dir() or kind_of(path) != LORA
        ]
        made = [(_made(path), str(path)) for path in self._outputs() if _kind_of_output(path) == CHECKPOINT]
        return [("demo", DEMO_MODEL), *made, *sorted(found, key=lambda item: item[0].lower())]

    def _find_models(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self.models, followlinks=True):
            here = Path(folder)
            if "model_index.json" in files:
                folders.clear()
                yield here
                continue
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (here / name for name in files if Path(name).suffix.lower() in WEIGHTS and name[0] != ".")

    def list_loras(self) -> list[tuple[str, str]]:
        """LoRA files as (label, path): what jobs have written, newest first, then the folder `loras` by name.

        A checkpoint among them is left out.
        """
        outputs = [(_made(path), str(path)) for path in self._outputs() if _kind_of_output(path) != CHECKPOINT]
        own = sorted((path for path in self.loras.rglob("*") if _is_weights(path)), key=lambda path: str(path).lower())
        return outputs + [(str(path.relative_to(self.root)), str(path)) for path in own if kind_of(path) != CHECKPOINT]

    def _outputs(self) -> list[Path]:
        """The weights that jobs have written, newest first."""
        found = [path for path in self.jobs.glob("[0-9]*/output/*") if _is_weights(path)]
        return sorted(found, key=_modified, reverse=True)

    def list_datasets(self) -> list[tuple[str, str]]:
        """Datasets as (label, folder): the demo's first, then the folders of `datasets` with a dataset.toml."""
        found = [("demo", DEMO_DATASET)] if (PROJECT / DEMO_DATASET / DATASET_FILE).is_file() else []
        folders = sorted(self.datasets.iterdir(), key=lambda path: path.name.lower())
        return found + [(folder.name, str(folder)) for folder in folders if (folder / DATASET_FILE).is_file()]


def _is_weights(path: Path) -> bool:
    return path.suffix.lower() in WEIGHTS and not path.name.startswith(".") and path.is_file()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def kind_of(path: Path) -> str:
    """CHECKPOINT or LORA by the names in a safetensors file; "" where they tell neither, and for other files."""
    if path.suffix.lower() != ".safetensors":
        return ""
    return _seen(path)[0]


def module_of(path: Path) -> str:
    """The network module that a LoRA says it was trained with, "networks.dylora" say; "" if it does not."""
    return _seen(path)[1] if path.suffix.lower() == ".safetensors" else ""


def _seen(path: Path) -> tuple[str, str]:
    try:
        status = path.stat()
    except OSError:
        return "", ""
    return _look(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _look(path: str, _size: int, _modified_ns: int) -> tuple[str, str]:
    """Kind and network module of a safetensors file; one that has not changed is not read again."""
    try:
        header = read_header(path)
    except UserError:
        return "", ""
    names = header.tensors
    if any(name.startswith(CHECKPOINT_PREFIX) for name in names):
        return CHECKPOINT, ""
    known = names and all(any(mark in name for mark in LORA_MARKS) for name in names)
    return LORA if known else "", header.metadata.get("ss_network_module", "")


def _kind_of_output(path: Path) -> str:
    """The kind of what a job has written; a file without a header is what the job was asked for."""
    if path.suffix.lower() == ".safetensors":
        return kind_of(path)
    try:
        config = read_toml(path.parent.parent / "config.toml", None)
    except UserError:
        return ""
    tables = [config, *(table for table in config.values() if isinstance(table, dict))]
    return CHECKPOINT if any("sd_model" in table for table in tables) else LORA


def _made(path: Path) -> str:
    return f"{path.stem} ({path.parent.parent.name})"
