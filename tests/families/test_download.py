"""Downloads with the real client from a hub on this machine: progress, room on the disk, links that break."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend import events
from backend.errors import UserError
from backend.families import download
from backend.families.base import load_model, locate, read_checkpoint, save_diffusers
from backend.families.build import random_model
from tests.families.checkpoints import assert_same_checkpoint
from tests.families.hub_server import HubServer, serving

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SDXL folder with files that a loader does not need."""
    folder = tmp_path_factory.mktemp("published") / "repo"
    save_diffusers(random_model(2, family="sdxl"), folder)
    (folder / "README.md").write_text("about")
    shutil.copy(folder / WEIGHTS, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    return folder


@pytest.fixture
def server(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving(published) as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        for module in ("file_download", "utils._http"):
            monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
        monkeypatch.setattr(download, "WAITS", (0.0, 0.0, 0.0))
        monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
        monkeypatch.chdir(tmp_path)
        yield running


def fetched(server: HubServer) -> list[str]:
    return [name for method, name, _ in server.asked if method == "GET" and not name.startswith("/")]


def test_a_model_of_three_networks_comes_with_what_it_needs(server: HubServer, published: Path, tmp_path: Path) -> None:
    assert_same_checkpoint(read_checkpoint("org/repo"), read_checkpoint(published))
    assert WEIGHTS in fetched(server) and "text_encoder_2/model.safetensors" in fetched(server)
    assert not any("fp16" in name or name.endswith((".txt", "vocab.json", ".md")) for name in fetched(server))
    # Of the tokenizers only what may tell of added words.
    assert {name for name in fetched(server) if name.startswith("tokenizer/")} == {
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
    }
    told, _ = events.read(tmp_path / "events.jsonl", 0)
    size = sum(path.stat().st_size for path in published.rglob("*.safetensors") if "fp16" not in path.name)
    steps = [event["step"] for event in told if event["event"] == "phase"]
    assert steps == sorted(steps) and len(steps) >= 2
    assert {event["name"] for event in told} == {"downloading the model (MB)"}
    assert steps[-1] == told[-1]["total"] == pytest.approx(size / 1e6, abs=1)
    server.asked.clear()
    load_model("org/repo")
    assert fetched(server) == []


def test_a_link_that_breaks_is_taken_up_where_it_broke(
    server: HubServer, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The client itself goes on in the middle of the file; where the hub is in trouble, we begin that file anew.
    server.faults[WEIGHTS] = ["drop", 503, 500]
    assert_same_checkpoint(read_checkpoint("org/repo"), read_checkpoint(published))
    ranges = [wanted for method, name, wanted in server.asked if (method, name) == ("GET", WEIGHTS)]
    half = (published / WEIGHTS).stat().st_size // 2
    assert ranges[0] is None and len(ranges) == 4
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= half
    others = [name for name in fetched(server) if name != WEIGHTS]
    assert len(others) == len(set(others))  # what was whole is not fetched again
    assert capsys.readouterr().out.count("The link to the hub broke") == 2


def test_a_hub_that_stays_broken_is_one_line(server: HubServer) -> None:
    server.faults[WEIGHTS] = [503] * 9
    with pytest.raises(UserError, match="the hub answered with an error") as caught:
        locate("org/repo")
    assert "\n" not in str(caught.value)
    assert len([name for name in fetched(server) if name == WEIGHTS]) == 1 + len(download.WAITS)


def test_what_the_hub_forbids_is_not_asked_again(server: HubServer) -> None:
    server.faults[WEIGHTS] = [404] * 9
    with pytest.raises(UserError):
        locate("org/repo")
    assert len([name for name in fetched(server) if name == WEIGHTS]) == 1


@pytest.mark.parametrize("source", ["org/repo", f"org/repo/{WEIGHTS}"])
def test_a_full_disk_is_seen_before_anything_is_fetched(
    source: str, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000_000))
    words = r"org/repo: fetching it needs \d+\.\d MB and .*cache has 20\.0 MB free; make room there, or set HF_HOME"
    with pytest.raises(UserError, match=words):
        locate(source)
    assert WEIGHTS not in fetched(server)


def test_what_is_there_needs_no_room(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    locate("org/repo")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert locate("org/repo").is_dir()


def test_a_single_file_tells_its_progress(server: HubServer, published: Path, tmp_path: Path) -> None:
    path = locate(f"org/repo/{WEIGHTS}")
    assert path.read_bytes() == (published / WEIGHTS).read_bytes()
    told, _ = events.read(tmp_path / "events.jsonl", 0)
    assert told[-1]["step"] == told[-1]["total"] == (published / WEIGHTS).stat().st_size // 10**6
