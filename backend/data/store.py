"""What is kept on the disk between runs: tensors under the hash of all that they came from, in a hidden folder.

A file's name says everything that its tensors depend on, so one that is there is right or damaged, never out of date.
Several runs may use a folder at the same time: files appear whole, and two that have the same name are equal.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from backend.bounded import read_json
from backend.data.pictures import Facts
from backend.errors import UserError
from backend.header import parse_header
from backend.replacing import replacing

FOLDER = ".lora_loom_cache"
INDEX = "index.json"
# Counted up when what is kept changes its meaning, such as another way to put pictures on white.
VERSION = 1
# Of a million pictures and more.
INDEX_BYTES = 1024 * 1024 * 1024
CHECK = "content"
# A file that changes again within the same tick of the file system's clock looks unchanged; so a stamp this young is
# not believed in the next run. FAT counts in 2 s, everything else more finely.
YOUNG = 2.0


class CacheFolder:
    """The cache beside the pictures of one folder.

    Args:
        pictures: the folder of the pictures.
        option: that asked for the cache; errors are about it.
        writes: whether this process writes to it; another one of the same run does otherwise.

    Raises:
        UserError: the cache is not there and cannot be made.
    """

    def __init__(self, pictures: Path, option: str, writes: bool = True) -> None:
        self.path = pictures / FOLDER
        self.option = option
        self.writes = writes
        # An older one on a disk that is read-only by now still serves.
        if writes and not self.path.is_dir():
            with self._writing():
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / ".gitignore").write_text("*\n", encoding="utf-8")
        pictures_known, files = _read_index(self.path / INDEX)
        self._pictures: dict[str, Any] = pictures_known
        self._files: dict[str, Any] = files
        self._changed = False

    def facts(self, path: Path, status: os.stat_result) -> Facts | None:
        """What an earlier run found out of a picture that has not been touched since."""
        entry = self._pictures.get(os.path.abspath(path))
        try:
            stamp, width, height, content = entry
            known = Facts((int(width), int(height)), str(content))
        except (TypeError, ValueError):
            return None
        return known if stamp == _stamp(status) else None

    def learn(self, path: Path, status: os.stat_result, facts: Facts, now: float) -> None:
        """Remember a picture.

        Args:
            path: of the picture.
            status: of the file before it was read.
            facts: found in it.
            now: unix time at which `status` was taken.
        """
        if now - max(status.st_mtime, status.st_ctime) > YOUNG:
            self._pictures[os.path.abspath(path)] = [_stamp(status), *facts.size, facts.content]
            self._changed = True

    def has(self, name: str, trust: bool = False) -> bool:
        """Whether whole tensors are kept under a name.

        Args:
            name: as `key` makes it.
            trust: believe a file whose size and time of change are those it was written with; else it is read.
        """
        try:
            status = self._file(name).stat()
        except OSError:
            return False
        stamp = [status.st_size, status.st_mtime_ns]
        if trust and self._files.get(name) == stamp:
            return True
        if self._verified(name) is None:
            return False
        if self._files.get(name) != stamp:
            self._files[name] = stamp
            self._changed = True
        return True

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors kept under a name.

        Raises:
            UserError: they are gone, or damaged.
        """
        try:
            return safetensors.torch.load(self._file(name).read_bytes())
        except (OSError, SafetensorError) as error:
            message = f"{self._file(name)} is gone or damaged: start again, and it is made anew"
            raise UserError(message, self.option) from error

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors.

        Raises:
            UserError: the folder cannot be written to.
        """
        if not self.writes:
            return
        plain = {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
        data = safetensors.torch.save(plain, metadata={CHECK: _digest(safetensors.torch.save(plain))})
        path = self._file(name)
        with self._writing():
            with replacing(path) as temporary:
                temporary.write_bytes(data)
            status = path.stat()
        self._files[name] = [status.st_size, status.st_mtime_ns]
        self._changed = True

    def save(self) -> None:
        """Write down what was learnt, beside what other runs have written in the meantime; nothing where nothing was.

        Without the index the next run is slower and as right, so a disk that refuses it is no error.
        """
        if not (self._changed and self.writes):
            return
        pictures, files = _read_index(self.path / INDEX)
        content = {"version": VERSION, "pictures": pictures | self._pictures, "files": files | self._files}
        try:
            with replacing(self.path / INDEX) as temporary:
                temporary.write_text(json.dumps(content), encoding="utf-8")
            self._changed = False
        except OSError:
            return

    def _verified(self, name: str) -> dict[str, Tensor] | None:
        try:
            data = self._file(name).read_bytes()
            tensors = safetensors.torch.load(data)
            check = parse_header(data, len(data), name).metadata.get(CHECK)
        except (OSError, SafetensorError, UserError):
            return None
        return tensors if check == _digest(safetensors.torch.save(tensors)) else None

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            plain = self.option.removesuffix("_to_disk")
            message = (
                f"cannot write to {self.path} ({error.strerror or error}): make room and allow writing there, or use "
                f"{plain} alone, which keeps all in memory"
            )
            raise UserError(message, self.option) from error


class Caches:
    """The caches of all folders that a run's pictures lie in.

    Args:
        option: as for `CacheFolder`.
        trust: as for `CacheFolder.has` (`skip_cache_check`).
        writes: as for `CacheFolder`.
    """

    def __init__(self, option: str, trust: bool = False, writes: bool = True) -> None:
        self.option = option
        self.trust = trust
        self.writes = writes
        self._folders: dict[Path, CacheFolder] = {}
        self._opening = Lock()

    def beside(self, picture: Path) -> CacheFolder:
        """The cache beside a picture, opened when it is asked for first."""
        with self._opening:  # several threads ask, and what one learns must not be lost with a folder of its own
            if picture.parent not in self._folders:
                self._folders[picture.parent] = CacheFolder(picture.parent, self.option, self.writes)
            return self._folders[picture.parent]

    def save(self) -> None:
        """As `CacheFolder.save`, for all of them."""
        for folder in self._folders.values():
            folder.save()


def key(kind: str, *parts: object) -> str:
    """The name of what depends on `parts`, in the folder `kind`; parts are texts, numbers, None and tuples of them."""
    return f"{kind}/{_digest(json.dumps([VERSION, *parts], default=str).encode())}"


def identity(modules: Iterable[nn.Module], config: Mapping[str, Any]) -> str:
    """A hash of modules: names, types, shapes and numbers of all their tensors, and their configuration.

    Entries of the configuration that tell where and by what it was written are left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    told = {name: value for name, value in config.items() if not name.startswith("_") and "version" not in name}
    digest.update(json.dumps(told, default=str, sort_keys=True).encode())
    for index, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{index} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().to("cpu").contiguous().flatten()
            digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_index(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both tables of an index; empty ones where it is missing, damaged or of another version."""
    try:
        content = read_json(path, None, INDEX_BYTES)
    except UserError:
        return {}, {}
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return {}, {}
    tables = [content.get(name) for name in ("pictures", "files")]
    return tuple(table if isinstance(table, dict) else {} for table in tables)
