"""Requests that are too large, too slow or meet a full disk; what they leave."""

import asyncio
import errno
import json
import os
import time

import pytest
from starlette.requests import ClientDisconnect

from backend import bodies
from backend.bodies import Uploads
from backend.guard import Guard
from backend.sweeping import LOCK, Sweeper
from tests.serving.client import run

UPLOAD = "/gradio_api/upload"


class Disk(Uploads):
    """Uploads to a disk of which the test says how much is free."""

    left = 10**12

    def free(self) -> int:
        return self.left


class Reader:
    """An application that reads a body to its end, into a file of the folder, as Gradio does."""

    def __init__(self, folder) -> None:
        self.folder, self.count, self.error, self.asked = folder, 0, None, 0

    async def __call__(self, scope, receive, send) -> None:
        self.asked += 1
        half = self.folder / "tmp12345678"
        half.write_bytes(b"half")
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self.count += len(message["body"])
            if self.error is not None:
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"traceback"})
                raise self.error
            if not message["more_body"]:
                break
        half.rename(self.folder / "whole")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[]"})


@pytest.fixture
def door(tmp_path, monkeypatch):
    """ask(parts, path=, length=): the status and text of an answer; `.reader` is the application, `.disk` the disk."""
    disk, reader = Disk(tmp_path), Reader(tmp_path)
    monkeypatch.setattr(bodies, "UPLOAD_BYTES", 1000)
    monkeypatch.setattr(bodies, "BODY_BYTES", 100)
    monkeypatch.setattr(bodies, "LOOK_BYTES", 10)
    guard = Guard(uploads=disk)
    guard.app = reader

    def ask(parts, path=UPLOAD, length=None, wait=0.0):
        sent, left = [], list(parts)

        async def receive():
            await asyncio.sleep(wait)
            body = left.pop(0) if left else b""
            if body is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": body, "more_body": bool(left)}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost")] + ([(b"content-length", str(length).encode())] if length else [])
        scope = {"type": "http", "path": path, "method": "POST", "headers": headers, "client": ("1.2.3.4", 1)}
        run(guard(scope, receive, send))
        if not sent:
            return None, ""
        body = b"".join(message.get("body", b"") for message in sent[1:])
        if sent[0]["status"] in (408, 413, 507):
            assert (b"connection", b"close") in sent[0]["headers"] and "detail" in json.loads(body)
        return sent[0]["status"], body.decode()

    ask.reader, ask.disk = reader, disk
    return ask


def leftover(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_upload_comes_in(door, tmp_path) -> None:
    assert door([b"x" * 500, b"x" * 400], length=900) == (200, "[]")
    assert leftover(tmp_path) == {"whole"}


@pytest.mark.parametrize(("path", "length"), [(UPLOAD, 1001), (f"{UPLOAD}/", 1001), ("/gradio_api/queue/join", 101)])
def test_what_says_that_it_is_too_large_is_not_read(door, tmp_path, path, length) -> None:
    assert door([b"x" * length], path, length)[0] == 413
    assert door.reader.asked == 0 and leftover(tmp_path) == set()


@pytest.mark.parametrize(("path", "size"), [(UPLOAD, 300), ("/gradio_api/queue/join", 30)])
@pytest.mark.parametrize("length", [None, 10])
def test_what_is_too_large_all_the_same_is_cut_off(door, tmp_path, path, size, length) -> None:
    assert door([b"x" * size] * 100, path, length)[0] == 413
    assert door.reader.count <= 4 * size
    assert path != UPLOAD or leftover(tmp_path) == set()


def test_there_has_to_be_room_before_it_is_read(door) -> None:
    door.disk.left = bodies.SPARE_BYTES + 899
    assert door([b"x" * 900], length=900)[0] == 507 and door.reader.asked == 0


def test_a_disk_that_fills_up_ends_an_upload_and_nothing_stays(door, tmp_path) -> None:
    door.disk.left = bodies.SPARE_BYTES
    parts = [b"x" * 20] * 10
    assert door(parts)[0] == 200
    door.disk.left = bodies.SPARE_BYTES - 1
    (tmp_path / "whole").unlink()
    assert door(parts)[0] == 507 and leftover(tmp_path) == set()


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507)])
def test_a_disk_that_refuses_to_be_written_to_is_told(door, tmp_path, number, status) -> None:
    door.reader.error = OSError(number, os.strerror(number))
    assert door([b"x"] * 3)[0] == status and leftover(tmp_path) == set()


def test_another_failure_stays_a_failure(door, tmp_path) -> None:
    door.reader.error = OSError(errno.EIO, "bad sector")
    with pytest.raises(OSError, match="bad sector"):
        door([b"x"] * 3)
    assert leftover(tmp_path) == set()


def test_uploads_have_a_share_of_the_disk(door, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bodies, "KEPT_BYTES", 1500)
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash" / "old.png").write_bytes(b"x" * 700)
    assert door([b"x" * 900], length=900)[0] == 507 and door.reader.asked == 0
    assert door([b"x" * 700], length=700)[0] == 200


def test_an_upload_that_broke_off_leaves_nothing(door, tmp_path) -> None:
    assert door([b"x" * 100, None], length=900) == (None, "")
    assert leftover(tmp_path) == set()


def test_a_body_that_does_not_come_is_not_waited_for(door, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bodies, "WAIT_SECONDS", 0.05)
    assert door([b"x"] * 9, wait=0.02)[0] == 408
    assert leftover(tmp_path) == set()
    # What keeps coming may take longer.
    monkeypatch.setattr(bodies, "SLOWEST", 10.0)
    assert door([b"x"] * 9, wait=0.02)[0] == 200


def test_what_another_upload_is_writing_stays(tmp_path) -> None:
    uploads = Uploads(tmp_path)
    going_on = uploads.begin()
    (tmp_path / "tmpaaaaaaaa").write_bytes(b"of the one that goes on")
    old = tmp_path / "tmpbbbbbbbb"
    old.write_bytes(b"left behind before")
    os.utime(old, (time.time() - 60,) * 2)
    uploads.end(uploads.begin())
    assert leftover(tmp_path) == {"tmpaaaaaaaa"}
    uploads.end(going_on)
    assert leftover(tmp_path) == set()


def test_the_start_removes_what_is_left_of_servers_that_are_gone(tmp_path) -> None:
    copies = tmp_path / ".gradio"
    (copies / "hash").mkdir(parents=True)
    (copies / "hash" / "a.png").write_bytes(b"x")
    (copies / "tmpaaaaaaaa").write_bytes(b"x")
    (copies / "link").symlink_to(tmp_path)
    first = Sweeper(Uploads(copies))
    first.start()
    assert leftover(copies) == {LOCK} and tmp_path.is_dir()
    # Another server on the same workspace leaves what the first one may be using.
    (copies / "hash").mkdir()
    (copies / "tmpaaaaaaaa").write_bytes(b"x")
    second = Sweeper(Uploads(copies))
    second.start()
    assert leftover(copies) == {LOCK, "hash"}
    first.close()
    second.close()


def test_the_hourly_sweep_removes_what_is_old(tmp_path, monkeypatch) -> None:
    sweeper = Sweeper(Uploads(tmp_path))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x")
    (tmp_path / "tmpaaaaaaaa").write_bytes(b"x")
    monkeypatch.setattr("backend.sweeping._newest", lambda path: time.time() - 90_000 * (path.name == "old"))
    sweeper.sweep()
    assert leftover(tmp_path) == {LOCK, "new"}
    sweeper.close()
