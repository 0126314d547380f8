"""Datasets made, shown and changed by the Train tab."""

import errno
import tomllib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from backend.config.dataset import DatasetConfig, SubsetOptions
from backend.data.captions import caption_extensions, find_caption
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
