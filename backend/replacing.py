"""Files and folders appear whole or not at all: written under a hidden name, then renamed."""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# As renameat2(2) names them.
_HERE, _EXCHANGE = -100, 2
# What disks answer that cannot flush, or cannot exchange.
_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
_TOKEN = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A hidden name beside `path`, renamed to it when the block ends well and removed when it does not.

    The folder is made if it is missing.

    Args:
        path: what a file is to be called.
        durable: have it on the disk before it gets its name, so that a power cut leaves no empty file.

    Raises:
        OSError: as the block raises it, with `path` as its file name where the disk is full or the hidden name failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden_name(path)
    try:
        yield temporary
        if durable:
            flush(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except OSError as error:
        # A copy that fails for want of room names the file it was made from.
        if error.filename in (None, str(temporary)) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, which takes its place when the block ends well and is removed when it does not.

    What the block has written is on the disk before that. A folder that was there is whole until it is gone: the two
    change places in one move where the disk can do that. Where it cannot, the old one waits for a moment under the
    name that `restore` knows.

    Raises:
        OSError: as the block raises it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = hidden_name(path), _old_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            flush(file)
        flush(temporary)
        if not path.exists():
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
            os.replace(temporary, path)
        flush(path.parent)
    finally:
        restore(path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that nobody ever sees half of it.

    Raises:
        OSError: it cannot be removed.
    """
    temporary = hidden_name(path)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def restore(path: Path) -> None:
    """Give a folder its name again if it was being replaced when the power or the process went."""
    with contextlib.suppress(OSError):
        if not path.exists():
            os.rename(_old_name(path), path)


def hidden_name(path: Path) -> Path:
    """A new hidden name beside `path`."""
    # Not by the process id alone: two containers that share a folder may both be number 1.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Remove what processes that were killed have left under hidden names.

    Args:
        folder: where to look.
        names: what the files and folders would have been called.
    """
    for path in list(folder.iterdir()):
        found = _TOKEN.fullmatch(path.name)
        if path.name.endswith(".old") and names.fullmatch(path.name[1:-4]):
            restore(path.with_name(path.name[1:-4]))
        elif found is None or not names.fullmatch(found["name"]):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file's contents, or a folder's names, on the disk.

    Raises:
        OSError: the disk is full or broken.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
    finally:
        os.close(descriptor)


def _old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one move; False where the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in _UNABLE:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))
