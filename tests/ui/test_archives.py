"""ZIPs as people and others make them: what cannot be read is named in one line, the rest is taken."""

import io
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.errors import UserError
from tabs.archives import FILES, source_of, unpack
from tabs.uploads import take


def png(color: str = "red") -> bytes:
    memory = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(memory, "PNG")
    return memory.getvalue()


def zipped(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", how) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, how)
    return memory.getvalue()


def taken(folder: Path, data: bytes) -> tuple[list[str], dict[str, str]]:
    (folder / "a.zip").write_bytes(data)
    report = take([folder / "a.zip"], folder / "set")
    return sorted(path.name for path in (folder / "set").iterdir()), dict(report.refused)


TWO = (("a.png", png()), ("b.png", png("blue")), ("b.txt", b"blue"))


def damaged(data: bytes, name: bytes, offset: int, value: bytes, central: int | None = None) -> bytes:
    """A ZIP with bytes changed in the local header (counted from its mark) and the central one of a member."""
    changed = bytearray(data)
    local = data.index(name) - 30
    changed[local + offset : local + offset + len(value)] = value
    if central is not None:
        middle = data.rindex(name) - 46
        changed[middle + central : middle + central + len(value)] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: damaged(data, b"a.png", 6, b"\1", 8), "is encrypted"),
        (lambda data: damaged(data, b"a.png", 8, b"\x62\0", 10), "cannot be unpacked"),
        (lambda data: damaged(data, b"a.png", 14, b"\1\2\3\4", 16), "cannot be unpacked (Bad CRC-32"),
        (lambda data: damaged(data, b"a.png", 40, b"\xff" * 20), "cannot be unpacked"),
        (lambda data: damaged(data, b"a.png", 30, b"x"), "cannot be unpacked (File name in directory"),
    ],
)
def test_a_member_that_cannot_be_read_is_named_and_the_rest_is_taken(tmp_path: Path, change, words: str) -> None:
    names, refused = taken(tmp_path, change(zipped(*TWO)))
    assert names == ["b.png", "b.txt"]
    assert list(refused) == ["a.png"] and refused["a.png"].startswith(words) and "\n" not in refused["a.png"]


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_read_and_their_damage_is_named(tmp_path: Path, how: int) -> None:
    data = zipped(*TWO, how=how)
    assert taken(tmp_path, data)[1] == {}
    names, refused = taken(tmp_path, damaged(data, b"b.txt", 44, b"\xff\xff"))
    assert list(refused) == ["b.txt"] and "cannot be unpacked" in refused["b.txt"]


@pytest.mark.parametrize("cut", [10, 100, -5, -40])
def test_a_zip_that_was_cut_off_is_one_line(tmp_path: Path, cut: int) -> None:
    with pytest.raises(UserError, match=r"a\.zip: is a broken ZIP, or was cut off") as caught:
        taken(tmp_path, zipped(*TWO)[:cut])
    assert "\n" not in str(caught.value)


def test_names_of_windows_and_names_that_lead_elsewhere_only_tell_files_apart(tmp_path: Path) -> None:
    shift_jis = "猫".encode("cp932").decode("cp437")
    data = zipped(
        ("..\\..\\up\\a.png", png()),
        ("..\\..\\up\\a.txt", b"up"),
        ("C:\\x\\b.png", png("blue")),
        ("/etc/c.png", png("green")),
        (f"{shift_jis}/{shift_jis}.png", png("white")),
        (f"{shift_jis}/{shift_jis}.txt", b"cat"),
    )
    names, refused = taken(tmp_path, data)
    assert (len(names), refused) == (6, {})
    assert {path.read_text() for path in (tmp_path / "set").glob("*.txt")} == {"up", "cat"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "set", ".set.names.json"}


def test_a_name_in_utf8_that_does_not_say_so_is_read_as_such(tmp_path: Path) -> None:
    data = bytearray(zipped(("猫.png", png()), ("猫.txt", b"cat")))
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := data.find(mark, place + 1)) >= 0:
            data[place + offset + 1] &= ~8
    assert taken(tmp_path, bytes(data)) == (["猫.png", "猫.txt"], {})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("in.zip", "a ZIP inside a ZIP"),
        ("x.heic", "of a format that cannot be read here"),
        ("x.mp4", "of a format that cannot be read here"),
        ("x.rar", "send a ZIP"),
        ("notes.docx", "neither a picture nor a caption"),
        (".hidden.png", "its name begins with a dot"),
        (".git/a.png", "in a hidden folder"),
        ("", "neither a picture"),
    ],
)
def test_everything_else_is_named(tmp_path: Path, name: str, words: str) -> None:
    names, refused = taken(tmp_path, zipped(*TWO, (name, b"PK")))
    assert names == ["a.png", "b.png", "b.txt"]
    assert list(refused) == [name or "(a file without a name)"]
    name = next(iter(refused))
    assert words in refused[name]


@pytest.mark.parametrize("name", ["__MACOSX/._a.png", "x/.DS_Store", "._a.png", "Thumbs.db", "x/desktop.ini", "x/"])
def test_what_systems_put_there_is_passed_over(tmp_path: Path, name: str) -> None:
    assert taken(tmp_path, zipped(*TWO, (name, b""))) == (["a.png", "b.png", "b.txt"], {})


def test_a_folder_with_a_number_says_its_repeats(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(
        zipped(
            ("img/10_shs dog/more/a.png", png()),
            ("img/10_shs dog/more/a.txt", b"a"),
            ("reg/1_dog/a.png", png("blue")),
            ("2024_holiday/a.png", png("green")),
            ("12/a.png", png("white")),
        )
    )
    report = take([tmp_path / "a.zip"], tmp_path / "home" / "pictures", numbered=True)
    assert [(each.name, each.repeats, each.tokens, each.is_reg) for each in report.numbered] == [
        ("10_shs_dog", 10, "shs dog", False),
        ("reg-1_dog", 1, "dog", True),
    ]
    home = tmp_path / "home"
    assert (home / "10_shs_dog" / "a.txt").read_text() == "a" and (home / "reg-1_dog" / "a.png").is_file()
    assert sorted(path.name for path in (home / "pictures").iterdir()) == ["a-2.png", "a.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_in_encodings_that_can_be_told_are_kept_with_their_lines(tmp_path: Path, encoding: str) -> None:
    taken(tmp_path, zipped(("a.png", png()), ("a.txt", "eine Kätze \r\nzwei\rdrei\u2028vier\n".encode(encoding))))
    assert (tmp_path / "set" / "a.txt").read_bytes().decode() == "eine Kätze\nzwei\ndrei\u2028vier"


@pytest.mark.parametrize("text", ["赤い猫".encode("cp932"), "Kätzchen".encode("latin-1"), b"a\0b", b"\xff\xfea"])
def test_captions_in_others_are_refused_by_name(tmp_path: Path, text: bytes) -> None:
    names, refused = taken(tmp_path, zipped(("a.png", png()), ("a.txt", text)))
    assert names == ["a.png"] and "save it as UTF-8" in refused["a.txt"]


WHOLE = [zipped(*TWO, ("x/c.jpg", png()), how=how) for how in (0, 8, 12, 14)]


@settings(deadline=None)
@given(
    which=st.sampled_from(range(len(WHOLE))),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 1500),
    more=st.binary(max_size=30),
)
def test_a_mutated_archive_gives_what_it_can_and_tells_the_rest(
    which: int, changes: list[tuple[int, int]], cut: int | None, more: bytes
) -> None:
    data = bytearray(WHOLE[which])
    for place, value in changes:
        data[-1 - place % len(data)] = value
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.zip"
        path.write_bytes(bytes(data[:cut]) + more)
        told: list[tuple[str, str]] = []
        items = list(unpack([(path, "a.zip")], lambda source, why: told.append((source.shown, why))))
        assert len(items) + len(told) <= FILES
        assert all(why and "\n" not in why for _, why in told)
        if not items:
            assert told or not data[:cut] or b"PK\5\6" in data
        try:
            take([path], Path(place) / "set")
        except UserError as error:
            assert "\n" not in str(error)
        assert {each.name for each in Path(place).iterdir()} <= {"a.zip", "set", ".set.names.json"}


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_name_is_a_path(name: str) -> None:
    source = source_of(name)
    assert "/" not in source.name and "\\" not in source.name and source.name not in (".", "..")
    assert not {".", "..", ""} & set(source.folder.split("/")) or source.folder == ""
