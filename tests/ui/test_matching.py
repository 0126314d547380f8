"""Which caption belongs to which picture: by folder and name, never twice, and nothing is lost in silence."""

import tempfile
import unicodedata
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.errors import UserError
from tabs.uploads import Report, take


def png(number: int) -> bytes:
    memory = BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 7)).save(memory, "PNG")
    return memory.getvalue()


def zipped(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def loose(place: Path, *files: tuple[str, bytes]) -> list[Path]:
    """Files as gradio puts them: each into a folder of its own."""
    paths = []
    for name, data in files:
        folder = Path(tempfile.mkdtemp(dir=place))
        (folder / name).write_bytes(data)
        paths.append(folder / name)
    return paths


def shown(folder: Path) -> dict[int, str | None]:
    """Of each picture, by its number, the caption that lies beside it."""
    found: dict[int, str | None] = {}
    for path in folder.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                red, green, _ = image.getpixel((0, 0))
            text = path.with_suffix(".txt")
            found[red + 256 * green] = text.read_text() if text.exists() else None
    return found


def refused(report: Report) -> dict[str, str]:
    return dict(report.refused)


def test_equal_names_from_two_folders_keep_their_own_captions_in_every_order(tmp_path: Path) -> None:
    one, two = ("cat.png", png(1)), ("cat.png", png(2))
    orders = [
        [one, ("cat.txt", b"one"), two, ("cat.txt", b"two")],
        [one, two, ("cat.txt", b"one"), ("cat.txt", b"two")],
        [("cat.txt", b"one"), one, ("cat.txt", b"two"), two],
    ]
    for number, files in enumerate(orders):
        report = take(loose(tmp_path, *files), tmp_path / f"set{number}")
        assert shown(tmp_path / f"set{number}") == {1: "one", 2: "two"}
        assert "Told apart by the order" in report.text()


def test_one_caption_for_two_equal_names_is_given_to_none(tmp_path: Path) -> None:
    report = take(loose(tmp_path, ("cat.png", png(1)), ("cat.png", png(2)), ("cat.txt", b"whose")), tmp_path / "set")
    assert shown(tmp_path / "set") == {1: None, 2: None}
    assert "several pictures have its name" in refused(report)["cat.txt"]


def test_a_match_is_not_replaced_by_a_later_upload_of_another_picture(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    take(loose(tmp_path, ("a.png", png(1)), ("a.txt", b"one")), folder)
    take(loose(tmp_path, ("a.png", png(2)), ("a.txt", b"two")), folder)
    assert shown(folder) == {1: "one", 2: "two"}
    report = take([*loose(tmp_path, ("a.txt", b"three")), *loose(tmp_path, ("b.png", png(3)))], folder)
    assert shown(folder) == {1: "one", 2: "two", 3: None}
    assert "several pictures" in refused(report)["a.txt"]


def test_the_same_folder_and_name_again_is_a_correction_unless_it_was_changed_here(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    take([zipped(tmp_path / "one.zip", [("cats/1.png", png(1)), ("cats/1.txt", b"wrong")])], folder)
    report = take([zipped(tmp_path / "two.zip", [("cats/1.txt", b"right")])], folder)
    assert shown(folder) == {1: "right"} and "1 caption replaced an earlier one" in report.text()
    report = take([zipped(tmp_path / "3.zip", [("dogs/1.txt", b"no"), ("dogs/2.png", png(2))])], folder)
    assert shown(folder) == {1: "right", 2: None} and "dogs/1.txt" in refused(report)
    (folder / "1.txt").write_text("by hand")
    again = zipped(tmp_path / "4.zip", [("cats/1.png", png(1)), ("cats/1.txt", b"wrong")])
    report = take([again], folder)
    assert shown(folder)[1] == "by hand" and "another caption already" in refused(report)["cats/1.txt"]
    assert report.again == 1


def test_captions_of_a_broken_picture_go_to_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    take(loose(tmp_path, ("a.png", png(1))), folder)
    report = take(loose(tmp_path, ("a.png", b"broken"), ("a.txt", b"of the broken"), ("b.png", png(2))), folder)
    assert shown(folder) == {1: None, 2: None}
    assert refused(report)["a.txt"] == "its picture was not taken"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("images/1.png", 1), ("captions/1.txt", "one")], {1: "one"}),
        ([("d/images/cat/1.png", 1), ("d/images/dog/1.png", 2), ("d/tags/dog/1.txt", "dog")], {1: None, 2: "dog"}),
        ([("images/1.png", 1), ("a/1.txt", "a"), ("b/1.txt", "b")], {1: None}),
        ([("x/1.png", 1), ("y/1.png", 2), ("captions/1.txt", "whose")], {1: None, 2: None}),
        ([("dogs/2.png", 2), ("cats/1.png", 1), ("dogs/1.txt", "dog")], {1: None, 2: None}),
        ([("a.png", 1), ("a.png.txt", "double")], {1: "double"}),
        ([("A.PNG", 1), ("a.TXT", "case")], {1: "case"}),
        ([("A.png", 1), ("a.png", 2), ("A.txt", "big"), ("a.txt", "small")], {1: "big", 2: "small"}),
        ([("Ab.png", 1), ("aB.png", 2), ("ab.txt", "whose")], {1: None, 2: None}),
        ([("v1.0.png", 1), ("v1.0.txt", "dot"), ("v1_0.png", 2), ("v1_0.txt", "bar")], {1: "dot", 2: "bar"}),
        ([("anna_1_2_3_4.png", 1), ("anna_5_6_7_8.png", 2), ("anna.txt", "anna")], {1: "anna", 2: "anna"}),
        ([("a.png", 1), ("a.txt", "first"), ("a.caption", "second")], {1: "first"}),
        ([("a.png", 1), ("a.txt", "x"), ("a.txt", "y")], {1: None}),
        ([("é.png", 1), (unicodedata.normalize("NFD", "é.txt"), "accent")], {1: "accent"}),
        ([("e.png", 1), ("é.txt", "accent")], {1: None}),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_folder_and_name_decide(tmp_path: Path, members: list, expected: dict[int, str | None]) -> None:
    data = [(name, png(what) if isinstance(what, int) else what.encode()) for name, what in members]
    for number, order in enumerate((data, data[::-1])):
        folder = tmp_path / f"set{number}"
        report = take([zipped(tmp_path / "a.zip", order)], folder)
        assert shown(folder) == expected
        assert len(report.pictures) + report.captions + len(report.refused) == len(data)


def test_captions_that_come_later_find_pictures_whose_names_were_changed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    stems = ["a b", "a-b", "a.b", "猫", "a_b", "ré", "a#b"]
    take(loose(tmp_path, *((f"{stem}.png", png(number)) for number, stem in enumerate(stems))), folder)
    later = [(unicodedata.normalize("NFD", f"{stem}.txt"), stem.encode()) for stem in stems]
    take(loose(tmp_path, *reversed(later)), folder)
    assert shown(folder) == dict(enumerate(stems))


def test_a_name_that_was_made_here_is_no_match(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    take(loose(tmp_path, ("v1.0.png", png(1)), ("a b.png", png(2))), folder)
    with pytest.raises(UserError, match=r"v1_0\.txt: a caption without a picture"):
        take(loose(tmp_path, ("v1_0.txt", b"bar"), ("a_b.txt", b"bar")), folder)
    assert shown(folder) == {1: None, 2: None}


def test_without_what_was_remembered_captions_still_find_the_names_here(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    take(loose(tmp_path, ("a b.png", png(1)), ("c.png", png(2))), folder)
    for broken in (b"{", b"[]", b'{"pictures": {"c": {"from": 3, "caption": []}}}', b"\xff"):
        (tmp_path / ".set.names.json").write_bytes(broken)
        take(loose(tmp_path, ("a b.txt", b"ab"), ("c.txt", b"c")), folder)
        assert shown(folder) == {1: "ab", 2: "c"}


FOLDERS = ("", "cats", "dogs", "cats/sub", "ünder", "10_x")
STEMS = ("1", "2", "a b", "a_b", "é", "v1.0")


@settings(deadline=None)
@given(st.data())
def test_every_picture_gets_its_own_caption_or_none_and_all_is_told(data: st.DataObject) -> None:
    """Random trees in one ZIP, folder by folder in two, or with captions that come later; in any order and form."""
    places = [(folder, stem) for folder in FOLDERS for stem in STEMS]
    pictures = data.draw(st.lists(st.sampled_from(places), unique=True, min_size=1, max_size=10))
    # Folders without any picture are captions' own, and so are told apart from these.
    known = [place for place in places if place[0] in {folder for folder, _ in pictures}]
    captions = data.draw(st.lists(st.sampled_from(known), unique=True, max_size=10))
    files = [(place, ".png") for place in pictures] + [(place, ".txt") for place in captions]
    files = data.draw(st.permutations(files))
    forms = data.draw(st.lists(st.sampled_from(["NFC", "NFD"]), min_size=len(files), max_size=len(files)))
    later = data.draw(st.sampled_from(["nothing", "folders", "captions"]))
    chosen = data.draw(st.sets(st.sampled_from(FOLDERS if later == "folders" else STEMS)))
    members, first, second = [], [], []
    for ((folder, stem), ending), form in zip(files, forms, strict=True):
        name = unicodedata.normalize(form, f"{folder}/{stem}{ending}".lstrip("/"))
        content = png(places.index((folder, stem))) if ending == ".png" else f"{folder}|{stem}".encode()
        members.append((name, content))
        held = folder in chosen if later == "folders" else ending == ".txt" and stem in chosen
        (second if held and later != "nothing" else first).append(members[-1])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        told = 0
        for number, part in enumerate((first, second)):
            try:
                report = take([zipped(Path(place) / f"{number}.zip", part)], folder)
            except UserError:
                told += len(part)
                continue
            told += len(report.pictures) + report.captions + len(report.refused)
        found = shown(folder) if folder.exists() else {}
        for number, caption in found.items():
            assert caption in (None, "|".join(places[number]))
        for own in set(pictures) & set(captions):
            assert found[places.index(own)] == "|".join(own)
        assert told == len(members)
