"""resize_images_to_resolution: which files come of which, what is refused, and that nothing is lost."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend import events
from backend.__main__ import main
from backend.config.tools import Resizing
from backend.errors import UserError
from backend.tools import resize_picture
from backend.tools.report import Report
from backend.tools.resize import resize
from tests.disks import small_disk

COMMAND = "resize_images_to_resolution"


def draw(path: Path, size: tuple[int, int] = (1200, 600), **options: object) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path, **options)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too, by their relative names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def run(src: Path, dst: Path, sizes: str = "64x64", workers: int | None = None, **options: object) -> Report:
    return resize(Resizing(src=src, dst=dst, max_resolution=sizes, **options), workers)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    source, target = tmp_path / "source", tmp_path / "target"
    draw(source / "a.jpg")
    draw(source / "b.png", (450, 450))
    for name in ("a.txt", "notes.md"):
        (source / name).write_text(name)
    command = [COMMAND, "--max_resolution", "512x512,384x384,256x256", "--save_as_png", "--copy_associated_files"]
    assert main([*command, str(source), str(target)]) == 0
    sizes = {"a+512x512": (724, 362), "a+384x384": (543, 271), "a+256x256": (362, 181)}
    sizes |= {"b+384x384": (384, 384), "b+256x256": (256, 256)}
    captions = {f"a+{size}.txt": b"a.txt" for size in ("512x512", "384x384", "256x256")}
    made = files(target)
    assert made.keys() == {*(f"{name}.png" for name in sizes), *captions, *files(source)}
    assert {name: size_of(target / f"{name}.png") for name in sizes} == sizes
    assert {name: made[name] for name in captions} == captions
    assert {name: made[name] for name in files(source)} == files(source)
    out = capsys.readouterr().out
    assert "5 smaller pictures made of 2" in out and "  512x512   1 made, 1 skipped\n" in out
    assert "size     pictures  skipped    width x height\n512x512         1        1           724x362\n" in out
    assert "384x384         2        0  384x384, 543x271\n" in out
    told = {record["event"]: record for record in events.read(tmp_path / "events.jsonl")[0]}
    assert told["report"]["facts"][1] == ["512x512", "1 made, 1 skipped"]
    assert told["report"]["bars"]["names"] == ["704x320", "384x384", "512x256", "256x256", "320x192"]
    assert told["report"]["bars"]["values"] == [1, 1, 1, 1, 1]
    assert told["file"]["path"] == str(target)
    assert main([*command, str(source), str(target)]) == 2
    assert "dst: 12 of 12 files exist: " in capsys.readouterr().err


def test_jpegs_unless_png_is_asked_for_and_edges_cut_to_multiples(tmp_path: Path) -> None:
    draw(tmp_path / "s/a.png")
    run(tmp_path / "s", tmp_path / "d", "512x512", divisible_by=64)
    assert files(tmp_path / "d").keys() == {"a.png", "a+512x512.jpg"}
    with Image.open(tmp_path / "d/a+512x512.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (704, 320))


def test_folders_names_and_hidden_files(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for name in ("A.PNG", "b.c.JPeG", "one/two/d.webp", "one/e.bmp", "c++.jpg", ".hidden/x.png", ".x.png"):
        draw(source / name)
    (source / "one/two/d.caption").write_text("d")
    (source / "one/x.bin").write_bytes(b"\x00\xff")
    (source / ".secret").write_text("x")
    (source / "linked").symlink_to(source / "one")
    found = run(source, tmp_path / "d", "64x64,32x32", copy_associated_files=True)
    pairs = [f"{stem}+{size}.jpg" for stem in ("A", "b.c", "one/two/d", "one/e", "c++") for size in ("64x64", "32x32")]
    others = ["one/two/d+64x64.caption", "one/two/d+32x32.caption", "one/two/d.caption", "one/x.bin"]
    originals = ["A.PNG", "b.c.JPeG", "one/two/d.webp", "one/e.bmp", "c++.jpg"]
    assert files(tmp_path / "d").keys() == {*pairs, *others, *originals}
    assert any("linked" in note for note in found.notes)


def test_caches_of_latents_do_not_go_with_another_size(tmp_path: Path) -> None:
    draw(tmp_path / "s/a.png")
    for name in ("a.npz", "a.txt", "b.txt"):
        (tmp_path / "s" / name).write_text(name)
    run(tmp_path / "s", tmp_path / "d", copy_associated_files=True)
    assert files(tmp_path / "d").keys() == {"a.png", "a+64x64.jpg", "a.npz", "a.txt", "a+64x64.txt", "b.txt"}
    run(tmp_path / "s", tmp_path / "e")
    assert files(tmp_path / "e").keys() == {"a.png", "a+64x64.jpg", "a.npz", "a.txt", "b.txt"}


def test_a_size_larger_than_the_picture_is_skipped(tmp_path: Path) -> None:
    draw(tmp_path / "s/a.png", (100, 100))
    (tmp_path / "s/a.txt").write_text("a")
    found = run(tmp_path / "s", tmp_path / "d", "128x128,100x100,64x64", copy_associated_files=True)
    stems = ("a", "a+100x100", "a+64x64")
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".jpg", ".txt")} - {"a.jpg"} | {"a.png"}
    assert files(tmp_path / "d").keys() == expected
    assert [row[:3] for row in found.rows] == [("128x128", "0", "1"), ("100x100", "1", "0"), ("64x64", "1", "0")]
    assert run(tmp_path / "s", tmp_path / "e", "128x128").bars is None
    assert files(tmp_path / "e").keys() == {"a.png", "a.txt"}


def test_thin_pictures_are_skipped_and_named(tmp_path: Path) -> None:
    draw(tmp_path / "s/thin.png", (2000, 100))
    draw(tmp_path / "s/wide.png", (2000, 1000))
    found = run(tmp_path / "s", tmp_path / "d", "128x128", divisible_by=64)
    assert files(tmp_path / "d").keys() == {"thin.png", "wide.png", "wide+128x128.jpg"}
    (note,) = found.notes
    assert "1 pictures would be thinner than divisible_by (64)" in note and "thin.png" in note


def test_relative_folders(tmp_path: Path, monkeypatch) -> None:
    draw(tmp_path / "s/sub/a.png")
    (tmp_path / "s/sub/a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    run(Path("s"), Path("d"), copy_associated_files=True)
    names = {"sub/a.png", "sub/a.txt", "sub/a+64x64.jpg", "sub/a+64x64.txt"}
    assert files(tmp_path / "d").keys() == names
    monkeypatch.chdir(tmp_path / "s")
    run(Path("."), Path("../e"), copy_associated_files=True)
    assert files(tmp_path / "e").keys() == names


def test_the_same_bytes_whatever_the_order_and_the_number_of_processes(tmp_path: Path) -> None:
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 60 + number, 3), dtype=np.uint8)
        (tmp_path / "s").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "s" / f"{number}.png")
    (tmp_path / "s/5.png").write_bytes(b"")
    reports = [
        run(tmp_path / "s", tmp_path / "a", "64x64,32x32,16x16", 1),
        run(tmp_path / "s", tmp_path / "b", "64x64,32x32,16x16", 3),
        run(tmp_path / "s", tmp_path / "c", "16x16,64x64,32x32", 2),
    ]
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")
    assert len(files(tmp_path / "a")) == 8 * 4
    assert reports[0].rows == reports[1].rows and reports[0].notes == reports[1].notes


def test_the_broken_are_named_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "cut.jpg", "empty.png", "z.jpg"):
        draw(tmp_path / "s" / name, quality=95)
    data = (tmp_path / "s/cut.jpg").read_bytes()
    (tmp_path / "s/cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "s/cut.txt").write_text("cut")
    (tmp_path / "s/empty.png").write_bytes(b"")
    line = [COMMAND, str(tmp_path / "s"), str(tmp_path / "d"), "--max_resolution", "64x64", "--copy_associated_files"]
    assert main(line) == 0
    out = capsys.readouterr().out.splitlines()
    for name, why in (("cut.jpg", "truncated"), ("empty.png", "empty, damaged or not a picture")):
        for word in ("Warning: ", "Note: "):
            assert len([line for line in out if line.startswith(word) and name in line and why in line]) == 1
    assert files(tmp_path / "d").keys() == {"a.jpg", "a+64x64.jpg", "z.jpg", "z+64x64.jpg", "cut.txt"}
    assert len([line for line in out if line.startswith("  pictures  2, and 2 that cannot be decoded")]) == 1


def test_nothing_but_broken_pictures_or_none(tmp_path: Path) -> None:
    (tmp_path / "s/.hidden").mkdir(parents=True)
    (tmp_path / "s/a.txt").write_text("a")
    cases = [(tmp_path / "s", "no pictures in .* or below"), (tmp_path / "t", "there is no folder")]
    cases.append((tmp_path / "s/a.txt", "is a file; name its folder"))
    for source, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            run(source, tmp_path / "d")
        assert caught.value.field == "src"
    data = draw(tmp_path / "s/cut.jpg").read_bytes()
    (tmp_path / "s/cut.jpg").write_bytes(data[:-3000])
    (tmp_path / "s/empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no picture in .* can be decoded: .*empty.jpg, .*cut.jpg"):
        run(tmp_path / "s", tmp_path / "d")
    with pytest.raises(UserError, match=r"is a file; name a folder") as caught:
        run(tmp_path / "s", tmp_path / "s/a.txt")
    assert caught.value.field == "dst"
    assert not (tmp_path / "d").exists()


def test_two_pictures_that_would_be_one_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "sub/b.webp", "sub/b.PNG", "c.png"):
        draw(tmp_path / "s" / name)
    draw(tmp_path / "s/c.jpg", (32, 32))  # too small for anything to be made of it
    with pytest.raises(UserError) as caught:
        run(tmp_path / "s", tmp_path / "d")
    words = str(caught.value)
    assert f"{tmp_path}/s/a.jpg and {tmp_path}/s/a.png as {tmp_path}/d/a+64x64.jpg" in words
    assert f"{tmp_path}/s/sub/b.PNG and {tmp_path}/s/sub/b.webp as" in words and "c.jpg" not in words
    assert words.startswith("src: two files would be written under one name") and not (tmp_path / "d").exists()


def test_existing_files_are_replaced_only_when_asked(tmp_path: Path) -> None:
    for number in range(9):
        draw(tmp_path / "s" / f"{number}.png")
    (tmp_path / "d").mkdir()
    for number in range(7):
        (tmp_path / "d" / f"{number}+64x64.jpg").write_text("mine")
    (tmp_path / "d/notes.txt").write_text("mine")
    before = files(tmp_path / "d")
    with pytest.raises(
        UserError, match=r"7 of 18 files exist: .*0\+64x64.jpg, .*4\+64x64.jpg and 2 more; give"
    ) as caught:
        run(tmp_path / "s", tmp_path / "d")
    assert caught.value.field == "dst" and files(tmp_path / "d") == before
    run(tmp_path / "s", tmp_path / "d", overwrite=True)
    after = files(tmp_path / "d")
    assert len(after) == 19 and after["notes.txt"] == b"mine" and b"mine" not in after["3+64x64.jpg"]
    (tmp_path / "d/3+64x64.jpg").unlink()
    (tmp_path / "d/3+64x64.jpg").mkdir()
    with pytest.raises(UserError, match="1 of 18 files exist: .*name another folder"):
        run(tmp_path / "s", tmp_path / "d", overwrite=True)


@pytest.mark.parametrize("spelling", ["s", "s/../s", "link"])
def test_the_same_folder(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "s")
    draw(tmp_path / "s/a.png")
    (tmp_path / "s/a.txt").write_text("a")
    draw(tmp_path / "s/own+12x12.png")  # no result: there is no picture "own"
    inode = (tmp_path / "s/a.png").stat().st_ino
    before = files(tmp_path / "s")
    run(tmp_path / "s", tmp_path / spelling, "64x64,32x32", copy_associated_files=True)
    first = files(tmp_path / "s")
    results = {f"a+{size}{suffix}" for size in ("64x64", "32x32") for suffix in (".jpg", ".txt")}
    assert first.keys() - before.keys() == results | {f"own+12x12+{size}.jpg" for size in ("64x64", "32x32")}
    assert before.items() <= first.items() and (tmp_path / "s/a.png").stat().st_ino == inode
    found = run(tmp_path / "s", tmp_path / spelling, "32x32,16x16", copy_associated_files=True, overwrite=True)
    assert files(tmp_path / "s").keys() - first.keys() == {"a+16x16.jpg", "a+16x16.txt", "own+12x12+16x16.jpg"}
    assert first.items() <= files(tmp_path / "s").items()
    assert any(note.startswith("6 results of an earlier run were left out: a+32x32.jpg, ") for note in found.notes)


def test_results_of_an_earlier_run_are_no_pictures_elsewhere_either(tmp_path: Path) -> None:
    draw(tmp_path / "s/a.png")
    run(tmp_path / "s", tmp_path / "d", "128x128,64x64")
    run(tmp_path / "d", tmp_path / "e", "32x32")
    assert files(tmp_path / "e").keys() == {"a.png", "a+32x32.jpg"}


def test_folders_in_each_other(tmp_path: Path) -> None:
    draw(tmp_path / "s/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    for inside in (tmp_path / "s/d", tmp_path / "link/d/e"):
        with pytest.raises(UserError, match="is inside") as caught:
            run(tmp_path / "s", inside)
        assert caught.value.field == "dst"
    assert files(tmp_path / "s").keys() == {"a.png"}
    draw(tmp_path / "p/s/a.png")
    run(tmp_path / "p/s", tmp_path / "p")
    assert files(tmp_path / "p").keys() == {"s/a.png", "a.png", "a+64x64.jpg"}
    draw(tmp_path / "q/s/s/a.png", (80, 80))
    original = draw(tmp_path / "q/s/a.png").read_bytes()
    with pytest.raises(UserError, match=r"files of .* would be replaced: .*q/s/a.png"):
        run(tmp_path / "q/s", tmp_path / "q", overwrite=True)
    assert (tmp_path / "q/s/a.png").read_bytes() == original


def test_a_dry_run_decodes_and_writes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(tmp_path / "s/a.jpg", exif=exif)
    draw(tmp_path / "s/b.png", (100, 100))
    (tmp_path / "s/c.png").write_bytes(b"")
    (tmp_path / "s/a.txt").write_text("a")

    def fail(*_: object) -> None:
        raise AssertionError("decoded or written")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", fail)
        patch.setattr("backend.tools.resize.make", fail)
        patch.setattr("backend.tools.resize.copy", fail)
        line = [COMMAND, str(tmp_path / "s"), str(tmp_path / "d"), "--max_resolution", "512x512,64x64", "--dry_run"]
        assert main(line) == 0
        dry = run(tmp_path / "s", tmp_path / "d", "512x512,64x64", dry_run=True)
    assert not (tmp_path / "d").exists() and files(tmp_path).keys() == {"s/a.jpg", "s/a.txt", "s/b.png", "s/c.png"}
    out = capsys.readouterr().out
    assert "3 smaller pictures would be made of 2" in out and "512x512   1 would be made, 1 skipped" in out
    assert dry.dry_run and dry.files == ()
    wet = run(tmp_path / "s", tmp_path / "d", "512x512,64x64")
    assert (dry.rows, dry.bars) == (wet.rows, wet.bars) and dry.rows[0] == ("512x512", "1", "1", "362x724")
    with pytest.raises(UserError, match="5 of 6 files exist"):
        (tmp_path / "d/a.txt").unlink()
        run(tmp_path / "s", tmp_path / "d", "512x512,64x64", dry_run=True)


def test_transparency_on_white_is_said(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    Image.new("RGBA", (100, 100), (0, 0, 0, 0)).save(tmp_path / "s/a.png")
    (note,) = run(tmp_path / "s", tmp_path / "d").notes
    assert (
        note.startswith("1 pictures had transparency, which is white now; --save_as_png keeps it") and "a.png" in note
    )
    assert run(tmp_path / "s", tmp_path / "e", save_as_png=True).notes == ()


def test_a_full_disk_is_one_line_and_leaves_whole_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "s").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 256, (150, 150, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "s" / f"{number}.png")
    (tmp_path / "s/big.bin").write_bytes(bytes(400_000))
    with small_disk(tmp_path / "disk", 512) as disk:
        line = [COMMAND, str(tmp_path / "s"), str(disk / "d"), "--max_resolution", "128x128", "--save_as_png"]
        assert main(line) == 2
        error = capsys.readouterr().err
        assert error.startswith(str(disk)) and error.endswith(
            ": the disk is full; free some space or choose another output folder\n"
        )
        made = files(disk / "d")
        assert len(made) > 2 and not any(name.endswith(".tmp") for name in made)
        for name in made:
            Image.open(disk / "d" / name).load()


@pytest.mark.parametrize("copying", [False, True])
def test_no_room_names_the_file_that_was_written(tmp_path: Path, monkeypatch, capsys, copying: bool) -> None:
    draw(tmp_path / "s/a.png")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *(str(part) for part in arguments[:1] if copying))

    if copying:
        monkeypatch.setattr(resize_picture.shutil, "copyfile", fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", fail)
    assert main([COMMAND, str(tmp_path / "s"), str(tmp_path / "d"), "--max_resolution", "64x64"]) == 2
    name = "a.png" if copying else "a+64x64.jpg"
    assert capsys.readouterr().err.startswith(f"{tmp_path}/d/{name}: the disk is full")
    assert not any(name.startswith(".") for name in files(tmp_path / "d"))
