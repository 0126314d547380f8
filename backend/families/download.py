"""Files from the hub into its cache: room is checked first, progress is told, a broken link is taken up again."""

import errno
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import tqdm

from backend import events
from backend.errors import UserError

EVENT_INTERVAL = 0.5
# Seconds to wait before each further attempt. The hub's client itself goes on in the middle of a file where the line
# drops for some seconds; after longer trouble whole files are kept, and those in hand begin anew.
WAITS = (1.0, 2.0, 4.0, 8.0)
_AGAIN = (408, 429)
_MEGABYTE = 10**6


class DownloadBar(tqdm):
    """The hub client's own bar on a terminal, and `phase` events wherever it runs; steps are megabytes."""

    def __init__(self, *args: Any, name: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("disable", None)  # that is, without a terminal
        super().__init__(*args, name=name, **kwargs)
        # The client also shows how many files are ready, and with some servers what goes over the wire.
        self._told = kwargs.get("unit") == "B" and not str(name).endswith(".transfer")
        self._bytes = float(kwargs.get("initial") or 0)
        self._next = 0.0
        self._counting = threading.Lock()

    def update(self, n: float | None = 1) -> bool | None:
        """Count bytes that have come in."""
        if self._told:
            with self._counting:
                self._bytes += n or 0
                self._tell()
        return super().update(n)

    def _tell(self) -> None:
        total, now = self.total or 0, time.monotonic()
        if total and (now >= self._next or self._bytes >= total):
            self._next = now + EVENT_INTERVAL
            step = int(min(self._bytes, total)) // _MEGABYTE
            events.emit("phase", name="downloading the model (MB)", step=step, total=max(1, int(total) // _MEGABYTE))


def cached_repo(repo: str, revision: str | None) -> Path:
    """The folder of what was fetched before.

    Raises:
        LocalEntryNotFoundError: nothing was.
    """
    return Path(snapshot_download(repo, revision=revision, local_files_only=True))


def cached_file(repo: str, name: str, revision: str | None) -> Path:
    """A file that was fetched before.

    Raises:
        LocalEntryNotFoundError: it was not.
    """
    return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))


def fetch_repo(repo: str, sizes: Mapping[str, int | None], revision: str | None) -> Path:
    """The folder that holds these files of a hub model; those that are not there yet are fetched.

    Raises:
        UserError: the disk has no room for them.
        HfHubHTTPError, HTTPError, OSError: the hub refuses, cannot be reached, or the disk cannot be written to.
    """
    _check_room(repo, sizes, revision)
    patterns = list(sizes)
    return Path(
        _persist(lambda: snapshot_download(repo, revision=revision, allow_patterns=patterns, tqdm_class=DownloadBar))
    )


def fetch_file(repo: str, name: str, revision: str | None, size: int | None) -> Path:
    """One file of a hub model, fetched if it is not there yet; raises as `fetch_repo` does."""
    _check_room(repo, {name: size}, revision)
    return Path(
        _persist(lambda: hf_hub_download(repo, name, revision=revision, local_files_only=False, tqdm_class=DownloadBar))
    )


def _check_room(repo: str, sizes: Mapping[str, int | None], revision: str | None) -> None:
    """Refuse what the disk has no room for; announce what will take a while."""
    needed = sum(
        size or 0
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(repo, name, revision=revision), str)
    )
    cache = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        message = (
            f"fetching it needs {_gigabytes(needed)} and {cache} has {_gigabytes(free)} free; make room there, or set "
            "HF_HOME to a folder on a larger disk"
        )
        raise UserError(message, field=repo)
    if needed >= 10 * _MEGABYTE:
        tqdm.write(f"Fetching {_gigabytes(needed)} of {repo} from the hub into {cache}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _persist(fetch: Callable[[], str]) -> str:
    """Try until it works or the failure is one that waiting does not mend."""
    for wait in WAITS:
        try:
            return fetch()
        except (HTTPError, OSError) as error:
            if not _may_pass(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            tqdm.write(f"The link to the hub broke ({reason}); going on in {wait:g} s")
            time.sleep(wait)
    return fetch()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, LocalEntryNotFoundError):
        return True  # what the client makes of a link that broke between two requests
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        return status >= 500 or status in _AGAIN
    known = errno.errorcode.get(getattr(error, "errno", None) or 0)
    return known is None or isinstance(error, ConnectionError | TimeoutError)
