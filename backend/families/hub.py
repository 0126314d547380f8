"""Where a model lies: on the disk, or on the hub, from which only the files that are needed are fetched."""

import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
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
from backend.families.folder import weight_names
from backend.families.storage import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES

_NAME = r"[A-Za-z0-9][\w.-]*"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
_PARTS = ("unet", "vae", "text_encoder")
# Hub errors are requests that failed; a dropped line and a switched-off network are other kinds.
_UNREACHABLE = (HTTPError, ConnectionError, TimeoutError)
_TIMEOUT_SECONDS = 20.0


def locate(source: str, revision: str | None = None) -> Path:
    """The local file or folder of a model, fetched from the hub where it has to be.

    Args:
        source: a path, `org/repo` (Diffusers layout), or `org/repo/path/file.safetensors`.
        revision: branch, tag or commit; only for the hub.

    Raises:
        UserError: nothing is there, neither here nor on the hub, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    is_file = path.suffix.lower() in SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES
    pieces = source.split("/")
    here = Path(pieces[0]).is_dir()  # a misspelt path below a folder that exists is no reason to ask the network
    if not here and not is_file and _REPO.fullmatch(source):
        return _fetch_repo(source, revision)
    if not here and is_file and len(pieces) >= 3 and _REPO.fullmatch("/".join(pieces[:2])) and ".." not in pieces:
        return _fetch_file("/".join(pieces[:2]), "/".join(pieces[2:]), revision)
    raise UserError("there is no such file or folder; give a path, or org/repo for the hub", field=source)


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
    else:
        message = "the connection to the hub failed; try again, or give a local path"
    return UserError(message, field=where)


def _file_names(repo: str, revision: str | None) -> list[str] | None:
    """The files of a hub model, or None when the hub cannot be reached.

    Raises:
        UserError: the hub refuses.
    """
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _explain(error, repo, revision, "the model") from error
    except _UNREACHABLE:
        return None
    return [sibling.rfilename for sibling in info.siblings or []]


def _fetch_file(repo: str, name: str, revision: str | None) -> Path:
    # Asking for the list first: a download would try an unreachable hub again and again for half a minute.
    offline = _file_names(repo, revision) is None
    try:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=offline))
    except (EntryNotFoundError, *_UNREACHABLE) as error:
        raise _explain(error, repo, revision, name) from error


def needed_files(names: list[str], repo: str) -> list[str]:
    """Of a hub model's files, those to fetch: configurations, and one file of weights per part.

    Raises:
        UserError: it is not in the Diffusers layout, or a part has no weights.
    """
    if "unet/config.json" not in names:
        single = [name for name in names if "/" not in name and name.endswith((".safetensors", ".ckpt"))]
        hint = f"; name a file of it, such as {repo}/{single[0]}" if single else ""
        raise UserError(f"the hub's model has no Diffusers layout (no unet/config.json){hint}", field=repo)
    chosen = [name for name in ("model_index.json", "scheduler/scheduler_config.json") if name in names]
    for part in _PARTS:
        whole = [f"{part}/{name}" for name in weight_names(part) if f"{part}/{name}" in names]
        index = [name for name in names if name.startswith(f"{part}/") and name.endswith(".safetensors.index.json")]
        pieces = [name for name in names if re.fullmatch(rf"{part}/.*-\d+-of-\d+\.safetensors", name)]
        weights = whole[:1] or [*index, *pieces]
        if not weights:
            raise UserError(f"the hub's model has no weights for its {part}", field=repo)
        chosen += [f"{part}/config.json", *weights]
    # Their presence tells another family apart; they are small and never read.
    return chosen + [name for name in names if name == "text_encoder_2/config.json"]


def _fetch_repo(repo: str, revision: str | None) -> Path:
    names = _file_names(repo, revision)
    files = None if names is None else needed_files(names, repo)
    try:
        # Offline this is what an earlier run fetched; the reader names a file that is missing there.
        path = snapshot_download(repo, revision=revision, allow_patterns=files, local_files_only=names is None)
    except (EntryNotFoundError, *_UNREACHABLE) as error:
        raise _explain(error, repo, revision, "the model") from error
    return Path(path)
