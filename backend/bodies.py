"""What comes in with a request: not more than there is room for, and not slower than any line is."""

import asyncio
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Refusal = tuple[int, str]

MB = 2**20
BODY_BYTES = 32 * MB  # of a request that uploads nothing
UPLOAD_BYTES = 8 * 1024 * MB  # of one upload, all its files together
KEPT_BYTES = 32 * 1024 * MB  # of all uploads that lie there at a time
SPARE_BYTES = 64 * MB  # left free for jobs, which write their ends into it
LOOK_BYTES = 8 * MB  # the disk is looked at again after so many

# A body may take so long, and as much longer as it has brought bytes at the slowest rate.
WAIT_SECONDS = 30.0
SLOWEST = 1024.0


class Uploads:
    """The folder that uploads are written to, and what there is room for.

    Args:
        folder: Gradio's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begun: dict[object, float] = {}

    def begin(self) -> object:
        """An upload begins; returns what `end` takes."""
        mark = object()
        self._begun[mark] = time.time()
        return mark

    def end(self, mark: object) -> None:
        """An upload is over, whole or broken off; what it left half done goes."""
        self._begun.pop(mark, None)
        self.sweep()

    def sweep(self) -> None:
        """Remove the files that uploads left half done: those from before the first upload that still goes on."""
        oldest = min(self._begun.values(), default=float("inf"))
        for file in self.halves():
            try:
                # The disk's clock may be a little behind ours.
                if file.stat().st_mtime < oldest - 1.0 or not self._begun:
                    file.unlink(missing_ok=True)
            except OSError:
                continue

    def halves(self) -> list[Path]:
        """Files that an upload is being written to, or was; whole ones lie in folders by their content."""
        try:
            return [path for path in self.folder.iterdir() if path.name.startswith("tmp") and path.is_file()]
        except OSError:
            return []

    def refuse(self, coming: int) -> Refusal | None:
        """Why so many more bytes cannot be taken; None where they can."""
        if coming > UPLOAD_BYTES:
            return 413, f"An upload has at most {UPLOAD_BYTES // MB} MB; upload the files in several parts."
        if self.free() < coming + SPARE_BYTES:
            return 507, "The disk of the workspace is full; delete old jobs or files."
        return None

    def refuse_kept(self, coming: int) -> Refusal | None:
        """Why uploads have filled their share of the disk; None where they have not."""
        if _size(self.folder) + coming > KEPT_BYTES:
            message = f"Uploads of the last day fill {KEPT_BYTES // MB} MB; restart LoRA Loom, or wait, to go on."
            return 507, message
        return None

    def free(self) -> int:
        """Bytes that the disk has left."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return 0


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        except OSError:
            continue
    return total


class Body:
    """A request's body on its way in; it breaks off where it is too large or too slow, or the disk fills up.

    Args:
        receive: gives the request's messages.
        uploads: where it is written to; None for what is not.

    Attributes:
        refusal: why it broke off, as status and text; None while it has not.
    """

    def __init__(self, receive: Receive, uploads: Uploads | None) -> None:
        self.refusal: Refusal | None = None
        self._receive = receive
        self._uploads = uploads
        self._whole = False
        self._count = self._looked = 0
        self._waited = 0.0

    async def receive(self) -> Message:
        """The next message; the application is told that the client has gone where the body broke off."""
        if self._whole:
            return await self._receive()
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        left = WAIT_SECONDS + self._count / SLOWEST - self._waited
        began = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.0))
        except TimeoutError:
            self.refusal = 408, "The request came too slowly."
            return {"type": "http.disconnect"}
        # The time that we take to write counts for nobody.
        self._waited += time.monotonic() - began
        if message["type"] != "http.request":
            self._whole = True
            return message
        self._count += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        self.refusal = self._refuse()
        if self.refusal is not None:
            self._whole = False
            return {"type": "http.disconnect"}
        return message

    def _refuse(self) -> Refusal | None:
        if self._uploads is None:
            return refuse_plain(self._count)
        if self._count > UPLOAD_BYTES:
            return self._uploads.refuse(self._count)
        if self._count - self._looked > LOOK_BYTES:
            self._looked = self._count
            return self._uploads.refuse(0)
        return None


def refuse_plain(count: int) -> Refusal | None:
    """Why a body of so many bytes that is no upload is not taken; None where it is."""
    return (413, f"A request has at most {BODY_BYTES // MB} MB.") if count > BODY_BYTES else None
