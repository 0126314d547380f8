"""Hashes of a base model: taken in the background, remembered, and taken again where the file is another."""

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from backend.families import hashes
from backend.families.hashes import Hashing, model_hashes

DATA = bytes(range(256)) * 8192
EXPECTED = {
    "sd_model_name": "m.safetensors",
    "sd_model_hash": hashlib.sha256(DATA[0x100000:0x110000]).hexdigest()[:8],
    "new_sd_model_hash": hashlib.sha256(DATA).hexdigest(),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/lora-loom/model_hashes.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "m.safetensors").write_bytes(DATA)
    return tmp_path / "m.safetensors"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose hashes were taken, one entry each time."""
    found: list[Path] = []
    real = hashes.file_hashes

    def counting(path: Path) -> dict[str, str]:
        found.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "file_hashes", counting)
    return found


def test_the_second_time_nothing_is_read(cache, path, read) -> None:
    assert model_hashes(path) == EXPECTED
    assert model_hashes(path) == EXPECTED
    assert Hashing([path]).result() == [EXPECTED]
    assert read == [path]


def test_a_file_that_was_changed_is_read_again(cache, path, read) -> None:
    model_hashes(path)
    stamp = path.stat().st_mtime_ns
    os.utime(path, ns=(stamp, stamp + 1))
    assert model_hashes(path) == EXPECTED and len(read) == 2
    path.write_bytes(DATA + b"!")
    os.utime(path, ns=(stamp, stamp + 1))
    assert model_hashes(path)["new_sd_model_hash"] == hashlib.sha256(DATA + b"!").hexdigest() and len(read) == 3
    # What is known of one path takes no room from the next.
    assert len(json.loads(cache.read_text())) == 1


def test_a_file_that_changes_meanwhile_is_not_remembered(cache, path, monkeypatch) -> None:
    def disturbed(path: Path) -> dict[str, str]:
        path.write_bytes(b"another")
        return {"sd_model_hash": "0" * 8, "new_sd_model_hash": "0" * 64}

    with monkeypatch.context() as patch:
        patch.setattr(hashes, "file_hashes", disturbed)
        model_hashes(path)
    assert not cache.exists()
    assert model_hashes(path)["new_sd_model_hash"] == hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\0", "{KEY: null}", "{KEY: {}}", "{KEY: [8, 64]}",
                                     '{KEY: {"sd_model_hash": "x", "new_sd_model_hash": "y"}}',
                                     '{KEY: {"sd_model_hash": 5, "new_sd_model_hash": null}}'])  # fmt: skip
def test_a_damaged_cache_does_no_harm(cache, path, read, content) -> None:
    model_hashes(path)
    key = next(iter(json.loads(cache.read_text())))
    cache.write_text(content.replace("KEY", json.dumps(key)))
    assert model_hashes(path) == EXPECTED and len(read) == 2
    assert model_hashes(path) == EXPECTED and len(read) == 2


def test_what_others_have_remembered_stays(cache, path, tmp_path) -> None:
    other = tmp_path / "m|1.ckpt"
    other.write_bytes(b"abc")
    model_hashes(other)
    model_hashes(path)
    assert len(json.loads(cache.read_text())) == 2


def test_without_a_place_to_remember(tmp_path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "m.ckpt").write_bytes(b"abc")
    assert model_hashes(tmp_path / "m.ckpt")["new_sd_model_hash"] == hashlib.sha256(b"abc").hexdigest()


def test_folders_hub_names_and_files_that_cannot_be_read_have_only_a_name(cache, path, monkeypatch) -> None:
    assert model_hashes(path.parent) == {"sd_model_name": path.parent.name}
    assert model_hashes("org/repo") == {"sd_model_name": "org/repo"}

    def gone(path: Path) -> dict[str, str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(hashes, "file_hashes", gone)
    assert Hashing([path, "org/repo"]).result() == [{"sd_model_name": path.name}, {"sd_model_name": "org/repo"}]


def test_nobody_waits_before_the_result_is_asked_for(cache, path, monkeypatch) -> None:
    asked, allowed = threading.Event(), threading.Event()
    threads = []

    def slow(path: Path) -> dict[str, str]:
        threads.append((threading.current_thread(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        asked.set()
        assert allowed.wait(60)
        return {name: EXPECTED[name] for name in ("sd_model_hash", "new_sd_model_hash")}

    monkeypatch.setattr(hashes, "file_hashes", slow)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    hashing = Hashing([path])
    assert asked.wait(60)
    allowed.set()
    assert hashing.result() == [EXPECTED]
    ((thread, niceness),) = threads
    assert thread.daemon and thread is not threading.current_thread()
    assert niceness >= 10 and os.getpriority(os.PRIO_PROCESS, 0) == own


def test_a_thread_that_comes_to_grief_costs_nothing(cache, path, monkeypatch) -> None:
    def broken(self: Hashing) -> None:
        return None

    monkeypatch.setattr(Hashing, "_take", broken)
    assert Hashing([path]).result() == [EXPECTED]
