"""Files appear whole or not at all: written under a hidden name, then renamed."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, renamed to it when the block ends well and removed when it does not.

    The folder is made if it is missing.

    Raises:
        OSError: as the block raises it, with `path` as its file name where the disk is full or the hidden name failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process id alone: two containers that share a folder may both be number 1.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A copy that fails for want of room names the file it was made from.
        if error.filename in (None, str(temporary)) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
