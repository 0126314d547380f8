"""Files and folders that are replaced: whole at every moment, whatever happens in between."""

import os
import re
import threading
from pathlib import Path

import pytest

from backend import replacing as module
from backend.replacing import hidden_name, remove_folder, remove_leftovers, replacing, replacing_folder, restore


def write(folder: Path, text: str) -> None:
    with replacing_folder(folder) as hidden:
        for name in ("a", "b"):
            (hidden / name).write_text(text)


def contents(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a", "b")]


def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    folder, missing = tmp_path / "last-state", []
    write(folder, "0")
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            if not folder.is_dir():
                missing.append(1)

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(100):
        write(folder, str(number))
    done.set()
    watcher.join()
    assert not missing and contents(folder) == ["99", "99"] and os.listdir(tmp_path) == ["last-state"]


def test_where_folders_cannot_change_places_the_old_one_comes_back(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "last-state"
    write(folder, "old")
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    write(folder, "new")
    assert contents(folder) == ["new", "new"] and os.listdir(tmp_path) == ["last-state"]
    # Killed between the two moves.
    os.rename(folder, tmp_path / ".last-state.old")
    restore(folder)
    assert contents(folder) == ["new", "new"] and os.listdir(tmp_path) == ["last-state"]
    # The second one fails.
    moves = []

    def fail(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise OSError(5, "Input/output error")
        os.rename(source, target)

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError):
        write(folder, "newest")
    assert contents(folder) == ["new", "new"] and os.listdir(tmp_path) == ["last-state"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "last-state"
    write(folder, "old")
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as hidden:
        (hidden / "a").write_text("new")
        raise ZeroDivisionError
    assert contents(folder) == ["old", "old"] and os.listdir(tmp_path) == ["last-state"]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    done: list[str] = []
    rename = os.replace
    monkeypatch.setattr(module, "flush", lambda path: done.append(re.sub(r"\d+-\w{8}", "0", path.name)))
    monkeypatch.setattr(module.os, "replace", lambda a, b: (done.append(f"-> {b.name}"), rename(a, b)))
    write(tmp_path / "state", "x")
    assert sorted(done[:2]) == ["a", "b"] and done[2:] == [".state.0.tmp", "-> state", tmp_path.name]
    done.clear()
    with replacing(tmp_path / "file", durable=True) as temporary:
        temporary.write_text("x")
    assert done == [".file.0.tmp", "-> file", tmp_path.name]


def test_half_of_a_folder_that_is_removed_is_never_seen(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "last-state"
    write(folder, "x")
    monkeypatch.setattr(module.shutil, "rmtree", lambda path: None)
    remove_folder(folder)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".last-state.") and contents(left) == ["x", "x"]


def test_leftovers_of_these_names_go_and_others_stay(tmp_path: Path) -> None:
    names = re.compile(r"last(-step\d{8})?(-state|\.safetensors)")
    for name in ("last-step00000002-state", "last.safetensors", "last2-state", "last-mine.safetensors"):
        hidden_name(tmp_path / name).mkdir()
    (hidden_name(tmp_path / "last-state")).write_text("a file")
    (tmp_path / ".last-state.old").mkdir()
    (tmp_path / ".last-state.backup").mkdir()
    write(tmp_path / ".last-step00000004-state.old", "x")
    write(tmp_path / "last-step00000006-state", "new")
    write(tmp_path / ".last-step00000006-state.old", "old")
    remove_leftovers(tmp_path, names)
    left = sorted(re.sub(r"\d+-\w{8}", "0", path.name) for path in tmp_path.iterdir())
    assert left == [
        ".last-mine.safetensors.0.tmp",
        ".last-state.backup",
        ".last2-state.0.tmp",
        "last-state",
        "last-step00000004-state",
        "last-step00000006-state",
    ]
    assert contents(tmp_path / "last-step00000006-state") == ["new", "new"]
