"""What is taken of an upload, and what is not."""

import errno
import os
import stat
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from backend.errors import UserError
from tabs import archives, uploads


def picture(color: str = "red", size: tuple[int, int] = (32, 24), kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def files(folder: Path, **contents: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in contents]


def archive(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> list[Path]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return [path]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_and_their_captions_are_kept_under_safe_names(tmp_path: Path) -> None:
    sent = files(
        tmp_path / "sent",
        **{"a b;$(x).PNG": picture(), "a b;$(x).txt": b"\xef\xbb\xbfone\nline", "z.jpeg": picture(kind="JPEG")},
    )
    report = uploads.take(sent, tmp_path / "out")
    assert names(tmp_path / "out") == ["a_b_x.png", "a_b_x.txt", "z.jpg"]
    assert (tmp_path / "out" / "a_b_x.txt").read_text() == "one\nline"
    assert (report.pictures, report.captions, report.refused) == (["a_b_x.png", "z.jpg"], 1, [])


def test_a_suffix_follows_the_contents(tmp_path: Path) -> None:
    uploads.take(files(tmp_path / "sent", **{"a.png": picture(kind="WEBP")}), tmp_path / "out")
    assert names(tmp_path / "out") == ["a.webp"]


def test_paths_and_links_of_a_zip_lead_nowhere(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    sent = archive(
        tmp_path / "a.zip",
        ("../../up.png", picture()),
        ("/root.png", picture("blue")),
        ("C:\\windows\\drive.png", picture("green")),
        (link, b"/etc/passwd"),
        ("__MACOSX/._x.png", b"junk"),
        (".hidden.png", picture()),
    )
    report = uploads.take(sent, tmp_path / "deep" / "out")
    assert names(tmp_path / "deep" / "out") == ["drive.png", "root.png", "up.png"]
    assert report.refused == [("link.png", "a link"), (".hidden.png", "is hidden: its name begins with a dot")]
    assert names(tmp_path) == ["a.zip", "deep"]


def test_names_that_meet_get_numbers_and_keep_their_captions(tmp_path: Path) -> None:
    sent = archive(
        tmp_path / "a.zip",
        ("x/1.png", picture("red")),
        ("x/1.txt", b"red"),
        ("y/1.png", picture("blue")),
        ("y/1.txt", b"blue"),
        ("y/1.jpg", picture("green", kind="JPEG")),
    )
    uploads.take(sent, tmp_path / "out")
    assert names(tmp_path / "out") == ["1-2.png", "1-2.txt", "1-3.jpg", "1-3.txt", "1.png", "1.txt"]
    assert (tmp_path / "out" / "1-2.txt").read_text() == (tmp_path / "out" / "1-3.txt").read_text() == "blue"
    assert (tmp_path / "out" / "1.txt").read_text() == "red"


def test_the_same_picture_again_is_not_kept_twice_and_captions_may_follow(tmp_path: Path) -> None:
    uploads.take(files(tmp_path / "first", **{"a.png": picture()}), tmp_path / "out")
    report = uploads.take(
        files(tmp_path / "second", **{"a.png": picture(), "A.txt": b"late", "none.txt": b"alone"}), tmp_path / "out"
    )
    assert names(tmp_path / "out") == ["a.png", "a.txt"]
    assert report.refused == [("none.txt", "a caption without a picture of its name")]


def broken() -> bytes:
    return picture(size=(200, 200), kind="JPEG")[:-400]


def bomb() -> bytes:
    """A PNG that says it has 20,000 by 20,000 pixels, in a few bytes."""
    data = bytearray(picture())
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.exe", b"MZ", "neither a picture"),
        ("a.svg", b"<svg/>", "of a format that cannot be read here"),
        ("a.rar", b"Rar!", "send a ZIP"),
        ("a.png", b"<html>", "not a picture"),
        ("a.gif.png", b"GIF89a" + bytes(20), "picture"),
        ("a.jpg", broken(), "broken picture"),
        ("a.png", bomb(), "picture"),
        ("a.png", picture(size=(4, 40)), "smaller than 8 pixels"),
        ("a.txt", b"x" * (uploads.CAPTION_BYTES + 1), "larger than 64 KB"),
    ],
)
def test_everything_else_is_left_out_with_its_reason(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    sent = files(tmp_path / "sent", **{"good.png": picture("blue"), name: data})
    report = uploads.take(sent, tmp_path / "out")
    assert report.pictures == ["good.png"]
    assert [refused for refused, _ in report.refused] == [name]
    assert reason in report.refused[0][1]
    assert names(tmp_path / "out") == ["good.png"]


def test_a_zip_that_lies_about_sizes_is_read_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILE_BYTES", 1000)
    sent = archive(tmp_path / "a.zip", ("big.png", bytes(2_000_000)), ("good.png", picture()))
    assert uploads.take(sent, tmp_path / "out").refused == [("big.png", "is larger than 0 KB")]


def test_limits_on_the_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILES", 2)
    sent = archive(tmp_path / "a.zip", *((f"{i}.png", picture(size=(8 + i, 8))) for i in range(5)))
    report = uploads.take(sent, tmp_path / "out")
    assert names(tmp_path / "out") == ["0.png", "1.png"]
    assert "more than 2 files" in report.refused[0][1]


def test_refused_members_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILES", 5)
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    members = [("a.png", picture()), *((f"{i}.exe", b"MZ") for i in range(4)), (link, b"x"), ("b.png", picture())]
    report = uploads.take(archive(tmp_path / "a.zip", *members), tmp_path / "out")
    assert names(tmp_path / "out") == ["a.png"]
    assert len(report.refused) == 6 and "more than 5 files" in report.refused[-1][1]


def test_the_bytes_of_refused_members_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILE_BYTES", 1000)
    monkeypatch.setattr(archives, "TOTAL_BYTES", 2500)
    members = [(f"{i}.png", bytes(5000)) for i in range(4)]
    sent = archive(tmp_path / "a.zip", ("a.png", picture()), *members, ("b.png", picture("blue")))
    report = uploads.take(sent, tmp_path / "out")
    assert names(tmp_path / "out") == ["a.png"]
    assert "more than" in report.refused[-1][1] and len(report.refused) == 3


def test_an_encrypted_or_cut_zip_is_refused_by_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("secret.png", picture()))[0]
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"secret\.png: is encrypted"):
        uploads.take([path], tmp_path / "out")
    path.write_bytes(data[:40])
    with pytest.raises(UserError, match=r"a\.zip: is a broken ZIP"):
        uploads.take([path], tmp_path / "out")


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        uploads.take(files(tmp_path / "sent", **{"a.png": picture()}), tmp_path / "out")
    assert names(tmp_path / "out") == []
