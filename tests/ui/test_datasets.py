"""Datasets made, shown and changed by the Train tab."""

import errno
import os
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from backend.config.dataset import DatasetConfig, SubsetOptions
from backend.data.captions import caption_extensions, find_caption
from backend.data.dataset import TrainingSet
from backend.errors import ConfigError, UserError
from backend.workspace import Workspace
from tabs import datasets
from tabs.thumbnails import thumbnail

SETTINGS = {
    "resolution": "64",
    "batch_size": 2,
    "enable_bucket": False,
    "num_repeats": 3,
    "class_tokens": "",
    "flip_aug": True,
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def sent(tmp_path: Path) -> list[Path]:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "one.png")
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "two.png")
    (tmp_path / "one.txt").write_text("a red thing")
    return [tmp_path / name for name in ("one.png", "two.png", "one.txt")]


def made(workspace: Workspace, sent: list[Path], **settings: object) -> datasets.Dataset:
    toml, _ = datasets.add_pictures(workspace, "mine", sent, {**SETTINGS, **settings})
    return datasets.open_dataset(workspace, str(toml))


def test_an_upload_becomes_a_dataset_that_the_trainer_reads(workspace: Workspace, sent: list[Path]) -> None:
    dataset = made(workspace, sent)
    options = DatasetConfig.load(dataset.path).datasets[0]
    assert (options.resolution, options.batch_size) == ((64, 64), 2)
    assert (options.subsets[0].num_repeats, options.subsets[0].flip_aug) == (3, True)
    assert options.subsets[0].image_dir == workspace.datasets / "mine" / "pictures"
    assert dataset.own
    assert dataset.settings() == SETTINGS
    assert [(picture.path.name, picture.caption) for picture in dataset.pictures()] == [
        ("one.png", "a red thing"),
        ("two.png", ""),
    ]
    assert dataset.summary(dataset.pictures()) == "2 pictures · 1 without a caption · trained at 64 × 64"
    assert ("mine", str(dataset.path)) in datasets.choices(workspace)


def test_settings_change_and_what_else_stands_in_the_toml_stays(workspace: Workspace, sent: list[Path]) -> None:
    dataset = made(workspace, sent)
    dataset.path.write_text(dataset.path.read_text() + 'caption_dropout_rate = 0.25\nclass_tokens = "old"\n')
    dataset = datasets.open_dataset(workspace, str(dataset.path))
    datasets.change_settings(dataset, {**SETTINGS, "resolution": "64x96", "class_tokens": 'a "new"\nword'})
    options = DatasetConfig.load(dataset.path).datasets[0]
    assert options.resolution == (64, 96)
    assert options.subsets[0].class_tokens == 'a "new"\nword'
    assert options.subsets[0].caption_dropout_rate == 0.25
    datasets.change_settings(datasets.open_dataset(workspace, str(dataset.path)), {**SETTINGS, "class_tokens": ""})
    assert DatasetConfig.load(dataset.path).datasets[0].subsets[0].class_tokens is None


@pytest.mark.parametrize("resolution", ["64", "512", "512x768", "1000"])
def test_buckets_fit_the_resolution(workspace: Workspace, sent: list[Path], resolution: str) -> None:
    options = made(workspace, sent, resolution=resolution, enable_bucket=True).config.datasets[0]
    assert options.enable_bucket
    assert options.min_bucket_reso < min(options.resolution)
    assert options.max_bucket_reso > max(options.resolution)
    assert options.max_bucket_reso % options.bucket_reso_steps == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("resolution", ""), ("resolution", "6f4"), ("resolution", "65"), ("batch_size", 0), ("num_repeats", 1.5)],
)
def test_a_wrong_setting_is_named_and_nothing_is_made(
    workspace: Workspace, sent: list[Path], field: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(workspace, sent, **{field: value})
    assert [name for name, _ in caught.value.problems] == [field]
    assert not (workspace.datasets / "mine").exists()


@pytest.mark.parametrize("name", ["../evil", "", "a/b", "con", ".hidden", "x\ny"])
def test_a_name_cannot_be_a_path(workspace: Workspace, sent: list[Path], name: str) -> None:
    with pytest.raises(UserError) as caught:
        datasets.add_pictures(workspace, name, sent, SETTINGS)
    assert caught.value.field == "name"
    assert list(workspace.datasets.iterdir()) == []


def test_more_pictures_join_a_dataset_and_leave_its_settings(workspace: Workspace, sent: list[Path]) -> None:
    made(workspace, sent[:1])
    dataset = made(workspace, sent[1:], num_repeats=99)
    assert len(dataset.pictures()) == 2
    assert dataset.settings()["num_repeats"] == 3


def test_nothing_is_left_of_an_upload_that_held_nothing(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "x.exe").write_bytes(b"MZ")
    with pytest.raises(UserError, match=r"nothing could be taken \(x\.exe"):
        datasets.add_pictures(workspace, "mine", [tmp_path / "x.exe"], SETTINGS)
    assert not (workspace.datasets / "mine").exists()


def test_captions_and_pictures_of_an_own_dataset_change(workspace: Workspace, sent: list[Path]) -> None:
    dataset = made(workspace, sent)
    datasets.set_caption(dataset, "two.png", " two\nlines ")
    assert (dataset.folder / "two.txt").read_text() == "two\nlines"
    datasets.remove_picture(dataset, "one.png")
    assert sorted(path.name for path in dataset.folder.iterdir()) == ["two.png", "two.txt"]
    for name in ("one.png", "../dataset.toml", ""):
        with pytest.raises(UserError, match="no picture"):
            datasets.set_caption(dataset, name, "x")


def test_datasets_of_others_are_only_read(workspace: Workspace, sent: list[Path]) -> None:
    own = made(workspace, sent)
    home = workspace.datasets / "theirs"
    home.mkdir()
    text = own.path.read_text().replace(str(own.folder), str(sent[0].parent))
    (home / "dataset.toml").write_text(text)
    dataset = datasets.open_dataset(workspace, str(home / "dataset.toml"))
    assert not dataset.own
    datasets.change_settings(dataset, {**SETTINGS, "num_repeats": 50})
    assert (home / "dataset.toml").read_text() == text
    with pytest.raises(UserError, match="not made here"):
        datasets.remove_picture(dataset, "one.png")
    with pytest.raises(UserError, match="not made here"):
        datasets.add_pictures(workspace, "theirs", sent, SETTINGS)


def test_the_demo_dataset_is_there_and_read_only(workspace: Workspace) -> None:
    label, path = datasets.choices(workspace)[0]
    dataset = datasets.open_dataset(workspace, path)
    assert (label, dataset.own) == ("demo", False)
    assert all(picture.caption for picture in dataset.pictures())


def test_thumbnails_are_small_and_made_once(tmp_path: Path) -> None:
    noise = Image.effect_noise((600, 400), 90).convert("RGB")
    noise.save(tmp_path / "big.png")
    small = thumbnail(tmp_path / "big.png", tmp_path / "cache")
    assert small is not None
    with Image.open(BytesIO(small.read_bytes())) as image:
        assert image.size == (256, 171)
    first = small.stat().st_mtime_ns
    assert thumbnail(tmp_path / "big.png", tmp_path / "cache") == small
    assert small.stat().st_mtime_ns == first
    (tmp_path / "broken.png").write_bytes(bytes(100_000))
    assert thumbnail(tmp_path / "broken.png", tmp_path / "cache") is None


def test_the_toml_is_written_by_a_toml_library(workspace: Workspace, sent: list[Path]) -> None:
    dataset = made(workspace, sent, class_tokens='x"\n[evil]\nkey = 1')
    assert tomllib.loads(dataset.path.read_text())["datasets"][0]["subsets"][0]["class_tokens"] == 'x"\n[evil]\nkey = 1'


@pytest.mark.parametrize("extension", [None, ".cap", "tags.txt"])
def test_captions_are_those_that_the_trainer_finds(tmp_path: Path, extension: str | None) -> None:
    options = SubsetOptions.model_validate(
        {"image_dir": tmp_path, "caption_extension": extension, "class_tokens": " a thing "}
    )
    files = {
        "one.txt": "\ufefftxt\nmore",
        "one.cap": "cap",
        "two.caption": "caption",
        "three.v2.cap": "dotted",
        "five.txt": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("one.png", "two.png", "three.v2.png", "four.png", "five.png"):
        theirs = find_caption(tmp_path / name, caption_extensions(options.caption_extension), options.class_tokens)
        assert datasets.caption_of(tmp_path / name, options) == theirs.text


def test_a_small_picture_from_elsewhere_is_copied_to_where_it_is_served_from(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    for folder in ("served", ""):
        Image.new("RGB", (20, 20), "red").save(tmp_path / folder / "a.png")
    (tmp_path / "served" / "link.png").symlink_to(tmp_path / "a.png")
    served, cache = [tmp_path / "served"], tmp_path / "cache"
    assert thumbnail(tmp_path / "served" / "a.png", cache, served) == tmp_path / "served" / "a.png"
    for name in ("a.png", "served/link.png"):
        small = thumbnail(tmp_path / name, cache, served)
        assert small is not None and small.is_relative_to(cache) and small.is_file()


def test_a_full_disk_changes_no_caption(workspace: Workspace, sent: list[Path], monkeypatch) -> None:
    dataset = made(workspace, sent)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="caption: the workspace's disk is full; delete old jobs or files"):
        datasets.set_caption(dataset, "one.png", "new")
    monkeypatch.undo()
    assert sorted(path.name for path in dataset.folder.iterdir()) == ["one.png", "one.txt", "two.png"]
    monkeypatch.setattr(
        Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UserError, match="picture: cannot write to the workspace: Permission denied"):
        datasets.remove_picture(dataset, "one.png")


def zipped(path: Path, members: dict[str, bytes]) -> list[Path]:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return [path]


def png(color: str) -> bytes:
    memory = BytesIO()
    Image.new("RGB", (40, 40), color).save(memory, "PNG")
    return memory.getvalue()


def test_numbered_folders_of_a_zip_become_folders_with_repeats(workspace: Workspace, tmp_path: Path) -> None:
    members = {"10_shs dog/a.png": png("red"), "10_shs dog/a.txt": b"a", "reg/2_dog/a.png": png("blue")}
    dataset = made(workspace, zipped(tmp_path / "a.zip", members))
    assert dataset.own
    told = [(s.image_dir.name, s.num_repeats, s.class_tokens, s.is_reg) for s in dataset.config.datasets[0].subsets]
    assert told == [("10_shs_dog", 10, "shs dog", False), ("reg-2_dog", 2, "dog", True)]
    found = TrainingSet.scan(dataset.config)
    assert [(p.caption, p.repeats, p.is_reg) for p in found.pictures] == [("a", 10, False), ("dog", 10, True)]
    assert "10_shs_dog × 10 · reg-2_dog × 2" in dataset.summary(dataset.pictures())
    # Later ones join the folder that is there; others get the folder of those without a number.
    (tmp_path / "b.png").write_bytes(png("green"))
    more = zipped(tmp_path / "b.zip", {"x/10_shs dog/c.png": png("white"), "x/10_shs dog/a.txt": b"late"})
    datasets.add_pictures(workspace, "mine", [*more, tmp_path / "b.png"], SETTINGS)
    dataset = datasets.open_dataset(workspace, str(dataset.path))
    assert [folder.name for folder in dataset.folders] == ["pictures", "10_shs_dog", "reg-2_dog"]
    assert [datasets.name_in(picture.path) for picture in dataset.pictures()] == [
        "b.png",
        "10_shs_dog/a.png",
        "10_shs_dog/c.png",
        "reg-2_dog/a.png",
    ]


def test_settings_and_captions_of_numbered_folders(workspace: Workspace, tmp_path: Path) -> None:
    members = {"10_a b/1.png": png("red"), "3_c/1.png": png("blue"), "3_c/1.txt": b"c"}
    dataset = made(workspace, zipped(tmp_path / "a.zip", members), flip_aug=False)
    datasets.change_settings(dataset, {**SETTINGS, "resolution": "128", "num_repeats": 99, "flip_aug": True})
    dataset = datasets.open_dataset(workspace, str(dataset.path))
    options = dataset.config.datasets[0]
    assert options.resolution == (128, 128)
    assert [(s.num_repeats, s.class_tokens, s.flip_aug) for s in options.subsets] == [(10, "a b", True), (3, "c", True)]
    datasets.set_caption(dataset, "3_c/1.png", "changed\nmore")
    assert [(p.caption, p.text) for p in dataset.pictures()] == [("a b", "a b"), ("changed", "changed\nmore")]
    datasets.remove_picture(dataset, "10_a_b/1.png")
    assert [datasets.name_in(p.path) for p in dataset.pictures()] == ["3_c/1.png"]


def test_an_own_dataset_is_deleted_and_no_other(workspace: Workspace, sent: list[Path]) -> None:
    dataset = made(workspace, sent)
    datasets.delete_dataset(workspace, dataset)
    assert list(workspace.datasets.iterdir()) == []
    demo = datasets.open_dataset(workspace, datasets.choices(workspace)[0][1])
    with pytest.raises(UserError, match="not made here"):
        datasets.delete_dataset(workspace, demo)
    dataset = made(workspace, sent)
    (workspace.root / "real").mkdir()
    dataset.path.parent.rename(workspace.root / "real" / "mine")
    dataset.path.parent.symlink_to(workspace.root / "real" / "mine")
    with pytest.raises(UserError, match="not made here"):
        datasets.delete_dataset(workspace, datasets.open_dataset(workspace, str(dataset.path)))
    assert (workspace.root / "real" / "mine" / "dataset.toml").is_file()


def test_what_a_run_would_leave_out_is_told(workspace: Workspace, sent: list[Path]) -> None:
    dataset = made(workspace, sent)
    assert dataset.pictures() and dataset.passed_over == []
    (dataset.folder / "x.heic").write_bytes(b"x")
    (dataset.folder / "one.txt").write_bytes("赤い猫".encode("cp932"))
    pictures = datasets.open_dataset(workspace, str(dataset.path))
    assert [picture.caption for picture in pictures.pictures()] == ["", ""]
    assert any("one.txt is not a text in UTF-8" in line for line in pictures.passed_over)
    assert any("x.heic" in line for line in pictures.passed_over)


@pytest.mark.parametrize("name", ["a.avif", "a.tif", "a.gif", "a.tga", "a.ppm"])
def test_pictures_that_no_browser_shows_get_thumbnails(workspace: Workspace, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    dataset = made(workspace, [tmp_path / name])
    (picture,) = dataset.pictures()
    small = thumbnail(picture.path, tmp_path / "cache", [workspace.datasets])
    assert small is not None and small.suffix in (".webp", ".gif")


def test_thumbnails_of_names_that_are_no_utf8_are_served_under_plain_ones(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(png("red"))
    small = thumbnail(path, tmp_path / "cache", [tmp_path])
    assert small is not None and str(small).isprintable()


@pytest.mark.parametrize("text", ["a\0b", "\ud83d"])
def test_a_caption_that_is_no_text_is_refused(workspace: Workspace, sent: list[Path], text: str) -> None:
    with pytest.raises(UserError, match="caption: has characters that are no text"):
        datasets.set_caption(made(workspace, sent), "one.png", text)


def test_a_dataset_path_that_never_ends_or_is_none_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe"), "a\0b", "~nobody-here/x", str(tmp_path), "x" * 5000):
        with pytest.raises(UserError) as caught:
            datasets.open_dataset(workspace, path)
        assert "\n" not in str(caught.value)
    for path in ("/dev/zero", "a\0b", "~nobody-here/x", "x" * 5000, "\ud800x"):
        with pytest.raises(UserError, match="train_data_dir"):
            datasets.open_folders(path)
