"""Where a model lies: on the disk, or on the hub, from which only the files that are needed are fetched."""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from backend.errors import UserError
from backend.families import download
from backend.families.folder import MODEL_FILES, family_of_folder, weight_names
from backend.families.model import Family
from backend.families.storage import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES

_NAME = r"[A-Za-z0-9][\w.-]*"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
# Hub errors are requests that failed; a dropped line and a switched-off network are other kinds, and so is a full disk.
_UNREACHABLE = (HTTPError, ConnectionError, TimeoutError)
_FAILURES = (EntryNotFoundError, HTTPError, OSError)
_TIMEOUT_SECONDS = 20.0

# Files of a hub model with their sizes in bytes, None where the hub does not say.
Listing = Mapping[str, int | None]


@dataclass(frozen=True)
class Remote:
    """A model on the hub, or one file of it."""

    repo: str
    file: str | None = None


def find(source: str) -> Path | Remote:
    """What a model's name means: a path that exists, `org/repo`, or `org/repo/path/file.safetensors`.

    Raises:
        UserError: it is none of these.
    """
    path = Path(os.path.expanduser(source))
    try:
        path.stat()
        return path
    except ValueError as error:
        raise UserError(f"{source!a} is no name of a file or folder") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise UserError(f"cannot be read: {error.strerror}", field=source) from error
    is_file = path.suffix.lower() in SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES
    pieces = source.split("/")
    here = Path(pieces[0]).is_dir()  # a misspelt path below a folder that exists is no reason to ask the network
    if not here and not is_file and _REPO.fullmatch(source):
        return Remote(source)
    if not here and is_file and len(pieces) >= 3 and _REPO.fullmatch("/".join(pieces[:2])) and ".." not in pieces:
        return Remote("/".join(pieces[:2]), "/".join(pieces[2:]))
    raise UserError("there is no such file or folder; give a path, or org/repo for the hub", field=source)


def locate(source: str, families: Mapping[str, Family], revision: str | None = None) -> Path:
    """The local file or folder of a model, fetched from the hub where it has to be.

    Args:
        source: a path, `org/repo` (Diffusers layout), or `org/repo/path/file.safetensors`.
        families: those that may be fetched.
        revision: branch, tag or commit; only for the hub.

    Raises:
        UserError: nothing is there, neither here nor on the hub, the hub cannot be reached, or the disk is too full.
    """
    place = find(source)
    if isinstance(place, Path):
        return place
    if place.file is not None:
        return _fetch_file(place.repo, place.file, revision)
    return _fetch_repo(place.repo, families, revision)


def locate_vae(source: str, revision: str | None = None) -> Path:
    """As `locate`, for a VAE alone: on the hub it lies on the top level or in the folder `vae`."""
    place = find(source)
    if isinstance(place, Path):
        return place
    if place.file is not None:
        return _fetch_file(place.repo, place.file, revision)
    return _fetch_vae(place.repo, revision)


def _explain(error: Exception, repo: str, revision: str | None, what: str) -> UserError:
    """One line for each way in which the hub can refuse."""
    where = f"{repo} (revision {revision})" if revision else repo
    if isinstance(error, GatedRepoError):
        message = "the hub gives this model only to those who accepted its terms; accept them and set HF_TOKEN"
    elif isinstance(error, RevisionNotFoundError):
        message = "the hub has no such revision of it; see the model's page for its branches"
    elif isinstance(error, RepositoryNotFoundError):
        message = "there is no such path here and no such model on the hub (a private one needs HF_TOKEN)"
    elif isinstance(error, LocalEntryNotFoundError):
        message = f"{what} is not in the local cache and the hub cannot be reached; fetch it once, or give a path"
    elif isinstance(error, HFValidationError):
        message = "there is no such path here, and it is no name that the hub can have"
    elif isinstance(error, EntryNotFoundError):
        message = f"the hub's model has no {what}"
    elif isinstance(error, HfHubHTTPError):
        message = f"the hub answered with an error ({str(error).strip().splitlines()[0][:120]}); try again later"
    elif isinstance(error, OSError) and error.errno is not None and not isinstance(error, _UNREACHABLE):
        message = f"{what} cannot be kept on this disk ({error.strerror}); make room, or set HF_HOME to another disk"
    else:
        message = "the connection to the hub failed; try again, or give a local path"
    return UserError(message, field=where)


def _listing(repo: str, revision: str | None) -> Listing | None:
    """The files of a hub model, or None when the hub cannot be reached.

    Raises:
        UserError: the hub refuses.
    """
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS, files_metadata=True)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _explain(error, repo, revision, "the model") from error
    except _UNREACHABLE:
        return None
    return {sibling.rfilename: sibling.size for sibling in info.siblings or []}


def _fetch_file(repo: str, name: str, revision: str | None) -> Path:
    # Asking for the list first: a download would try an unreachable hub again and again for half a minute.
    listing = _listing(repo, revision)
    try:
        if listing is None:
            return download.cached_file(repo, name, revision)
        return download.fetch_file(repo, name, revision, listing.get(name))
    except _FAILURES as error:
        raise _explain(error, repo, revision, name) from error


def _fetch_vae(repo: str, revision: str | None) -> Path:
    listing = _listing(repo, revision)
    try:
        if listing is None:
            return download.cached_repo(repo, revision)
        for root in ("", "vae/"):
            weights = [f"{root}{name}" for name in MODEL_FILES if f"{root}{name}" in listing]
            if weights and f"{root}config.json" in listing:
                chosen = {name: listing[name] for name in (f"{root}config.json", weights[0])}
                return download.fetch_repo(repo, chosen, revision)
    except _FAILURES as error:
        raise _explain(error, repo, revision, "the VAE") from error
    raise UserError("the hub's model has no VAE in the Diffusers layout; name a file, such as org/repo/vae.pt", repo)


def config_files(names: Sequence[str], repo: str) -> list[str]:
    """Of a hub model's files, the small ones that tell what it is.

    Raises:
        UserError: it is not in the Diffusers layout.
    """
    if "unet/config.json" not in names:
        single = [name for name in names if "/" not in name and name.endswith((".safetensors", ".ckpt"))]
        hint = f"; name a file of it, such as {repo}/{single[0]}" if single else ""
        raise UserError(f"the hub's model has no Diffusers layout (no unet/config.json){hint}", field=repo)
    wanted = re.compile(
        r"model_index\.json|scheduler/scheduler_config\.json|(unet|vae|text_encoder\w*)/config\.json"
        r"|tokenizer(_2)?/(added_tokens|special_tokens_map|tokenizer|tokenizer_config)\.json"
    )
    return [name for name in names if wanted.fullmatch(name)]


def weight_files(names: Sequence[str], repo: str, parts: Sequence[str]) -> list[str]:
    """Of a hub model's files, one file of weights per part, or all pieces where only pieces are there.

    Raises:
        UserError: a part has no weights.
    """
    chosen = []
    for part in parts:
        whole = [f"{part}/{name}" for name in weight_names(part) if f"{part}/{name}" in names]
        index = [name for name in names if re.fullmatch(rf"{part}/[^/]*\.safetensors\.index\.json", name)]
        pieces = [name for name in names if re.fullmatch(rf"{part}/[^/]*-\d+-of-\d+\.safetensors", name)]
        weights = whole[:1] or [*index, *pieces]
        if not weights:
            raise UserError(f"the hub's model has no weights for its {part}", field=repo)
        chosen += weights
    return chosen


def _fetch_repo(repo: str, families: Mapping[str, Family], revision: str | None) -> Path:
    listing = _listing(repo, revision)
    try:
        if listing is None:
            # What an earlier run fetched; the reader names a file that is missing there.
            return download.cached_repo(repo, revision)
        names = list(listing)
        configs = {name: listing[name] for name in config_files(names, repo)}
        folder = download.fetch_repo(repo, configs, revision)
        # Another family is refused here, before gigabytes are fetched.
        family = families[family_of_folder(folder, families)]
        weights = {name: listing[name] for name in weight_files(names, repo, tuple(family.parts))}
        return download.fetch_repo(repo, configs | weights, revision)
    except _FAILURES as error:
        raise _explain(error, repo, revision, "the model") from error
