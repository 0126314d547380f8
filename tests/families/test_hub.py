"""Names on the hub: what is fetched, and one clear line for each way in which it can fail. No network is used."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from backend.errors import UserError
from backend.families import download, hub
from backend.families.base import Checkpoint, load_model, locate, read_checkpoint
from tests.families.checkpoints import assert_same_checkpoint

REQUEST = httpx2.Request("GET", "https://hub.example/api")
CONFIGS = ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"]
CONFIGS += ["scheduler/scheduler_config.json"]
WEIGHTS = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]
NOISE = ["README.md", "v1-5-pruned.ckpt", "safety_checker/model.safetensors", "tokenizer/vocab.json"]
NOISE += ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors"]
NOISE += ["unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/config.json"]


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind(f"{status} error", response=httpx2.Response(status, request=REQUEST))


class Hub:
    """Stands in for the hub: a list of files, a folder they come from, and a note of what was asked."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names, self.failure = folder, names, None
        self.asked: list[tuple] = []

    def model_info(self, repo: str, revision: str | None, timeout: float, files_metadata: bool) -> SimpleNamespace:
        self.asked.append(("info", repo, revision))
        if self.failure:
            raise self.failure
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=1000) for name in self.names])

    def snapshot_download(self, repo: str, **options: object) -> str:
        self.asked.append(("snapshot", options.get("allow_patterns"), options.get("local_files_only")))
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("nothing cached")
        return str(self.folder)

    def hf_hub_download(
        self, repo: str, name: str, revision: str | None, local_files_only: bool, tqdm_class: type | None = None
    ) -> str:
        self.asked.append(("file", repo, name, revision, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("nothing cached")
        if name not in self.names:
            raise answer(RemoteEntryNotFoundError, 404)
        return str(self.folder / name)


@pytest.fixture
def fake(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(Path(shutil.copytree(folder, tmp_path / "hub")), [*NOISE, *CONFIGS, *WEIGHTS])
    monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(download, "snapshot_download", stand_in.snapshot_download)
    monkeypatch.setattr(download, "hf_hub_download", stand_in.hf_hub_download)
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return stand_in


def test_only_the_needed_files_are_fetched(fake: Hub, checkpoint: Checkpoint) -> None:
    assert_same_checkpoint(read_checkpoint("org/repo", "main"), checkpoint)
    assert fake.asked[0] == ("info", "org/repo", "main")
    first, second = [set(patterns) for _, patterns, _ in fake.asked[1:]]
    assert first == set(CONFIGS)
    assert second == set(CONFIGS + WEIGHTS)


def test_half_precision_only_and_pieces() -> None:
    parts = ("unet", "text_encoder")
    pieces = [f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = ["unet/diffusion_pytorch_model.safetensors.index.json"]
    half = ["text_encoder/model.fp16.safetensors"]
    others = ["unet/diffusion_pytorch_model.fp16.safetensors.index.json.lock", "text_encoder/pytorch_model.bin"]
    assert set(hub.weight_files(pieces + index + half + others, "org/repo", parts)) == {*pieces, *index, *half}
    with pytest.raises(UserError, match="no weights for its text_encoder"):
        hub.weight_files(pieces + index, "org/repo", parts)


def test_a_single_file_of_a_repo(fake: Hub, single_file: Path, checkpoint: Checkpoint) -> None:
    (fake.folder / "sub").mkdir()
    shutil.copy(single_file, fake.folder / "sub" / "m.safetensors")
    fake.names.append("sub/m.safetensors")
    assert_same_checkpoint(read_checkpoint("org/repo/sub/m.safetensors", "v2"), checkpoint)
    assert fake.asked[-1] == ("file", "org/repo", "sub/m.safetensors", "v2", False)


def test_another_family_is_refused_before_its_weights_are_fetched(fake: Hub) -> None:
    config = fake.folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    with pytest.raises(UserError, match="9 channels"):
        load_model("org/repo")
    assert len(fake.asked) == 2


def test_a_repo_of_single_files_names_one(fake: Hub) -> None:
    fake.names = ["README.md", "model.safetensors"]
    with pytest.raises(UserError, match="such as org/repo/model.safetensors"):
        load_model("org/repo")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (httpx2.ConnectError("no route"), "not in the local cache and the hub cannot be reached"),
        (httpx2.ReadTimeout("slow"), "not in the local cache and the hub cannot be reached"),
        (OfflineModeIsEnabled("offline"), "not in the local cache and the hub cannot be reached"),
        (answer(RepositoryNotFoundError, 404), "no such model on the hub"),
        (answer(RevisionNotFoundError, 404), "no such revision"),
        (answer(GatedRepoError, 403), "accepted its terms"),
    ],
)
@pytest.mark.parametrize("source", ["org/repo", "org/repo/model.safetensors"])
def test_failures_are_one_line(failure: Exception, words: str, source: str, fake: Hub) -> None:
    fake.failure = failure
    with pytest.raises(UserError, match=words) as caught:
        load_model(source, "v9")
    assert str(caught.value).startswith("org/repo (revision v9): ") and "\n" not in str(caught.value)


def test_what_was_fetched_before_serves_offline(
    fake: Hub, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.failure = httpx2.ConnectError("no route")
    monkeypatch.setattr(download, "snapshot_download", lambda repo, **options: str(fake.folder))
    assert_same_checkpoint(read_checkpoint("org/repo"), checkpoint)


def test_a_file_that_the_repo_lacks(fake: Hub) -> None:
    with pytest.raises(UserError, match="the hub's model has no x.safetensors"):
        load_model("org/repo/x.safetensors")


def test_local_paths_never_ask_the_hub(fake: Hub, single_file: Path) -> None:
    Path("org").mkdir()
    Path("org/repo").mkdir()
    assert locate("org/repo") == Path("org/repo")
    missing = ["org/other", "org/sub/x.safetensors", "/org/repo", "./a/b", "../a/b", "x.safetensors", "a/b.ckpt", "a"]
    for source in [*missing, "a/../b/c.safetensors", "a/b/c/d", str(single_file) + "x"]:
        with pytest.raises(UserError, match="no such file or folder"):
            locate(source)
    assert fake.asked == []


def test_the_real_client_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for source in ("org/repo", "org/repo/model.safetensors"):
        with pytest.raises(UserError, match="the hub cannot be reached"):
            load_model(source)
    with pytest.raises(UserError, match="no name that the hub can have"):
        load_model("org/re..po")
