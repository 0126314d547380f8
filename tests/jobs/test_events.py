"""Events: what a command says about itself, and what the web side reads of it."""

import math

import pytest

from backend import events


def test_written_events_are_read_in_order_and_only_once(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(events.VARIABLE, str(path))
    events.emit(step=1, total=9, loss=0.5, lr={"unet": 1e-4})
    events.emit("sample", path=tmp_path / "a.png", prompt='two\nlines "quoted" ü')
    first, offset = events.read(path)
    assert [record["event"] for record in first] == ["progress", "sample"]
    assert first[0]["lr"] == {"unet": 1e-4} and first[0]["time"] > 1e9
    assert first[1] == first[1] | {"path": str(tmp_path / "a.png"), "prompt": 'two\nlines "quoted" ü'}
    assert events.read(path, offset) == ([], offset)
    events.emit(step=2)
    second, _ = events.read(path, offset)
    assert [record["step"] for record in second] == [2]


def test_a_half_written_line_waits_until_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "progress", "step": 1}\n{"event": "prog')
    first, offset = events.read(path)
    assert [record["step"] for record in first] == [1]
    with path.open("ab") as file:
        file.write(b'ress", "step": 2}\n')
    assert [record["step"] for record in events.read(path, offset)[0]] == [2]


def test_broken_lines_do_not_hide_the_others(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "pro\n[1]\n\xff\xfe\n{"event": "progress", "loss": NaN}\n')
    records, _ = events.read(path)
    assert len(records) == 1 and math.isnan(records[0]["loss"])


def test_nothing_is_written_without_a_place_and_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(events.VARIABLE, raising=False)
    events.emit(step=1)
    monkeypatch.setenv(events.VARIABLE, "/dev/full")
    events.emit(step=1)
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "gone" / "events.jsonl"))
    events.emit(step=1)
    assert list(tmp_path.iterdir()) == []
    assert events.read(tmp_path / "missing") == ([], 0)


@pytest.mark.parametrize("value", [float("inf"), 1e-320, -0.0])
def test_every_float_survives(tmp_path, monkeypatch, value):
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "e"))
    events.emit(loss=value)
    assert events.read(tmp_path / "e")[0][0]["loss"] == value
