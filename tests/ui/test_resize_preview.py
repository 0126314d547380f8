"""What resizing would give, from the headers of pictures."""

from pathlib import Path

import pytest
from PIL import ExifTags, Image

from backend.errors import UserError
from backend.tables.resizing import target_size
from backend.workspace import Workspace
from tabs import datasets, resize, resize_preview
from tabs.resize_preview import bucket_step, outcomes, pictures_in, preview_html, sizes_of


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def picture(path: Path, size: tuple[int, int], turned: bool = False) -> None:
    image = Image.new("RGB", size)
    exif = image.getexif()
    if turned:
        exif[ExifTags.Base.Orientation] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)


@pytest.mark.parametrize(
    ("picture_size", "step", "wanted"),
    [
        ((1024, 1024), 1, (512, 512)),
        ((2048, 512), 1, (1024, 256)),
        ((800, 600), 1, (591, 443)),
        ((800, 600), 64, (576, 384)),
        ((512, 512), 1, (512, 512)),
        ((511, 512), 1, None),
        ((60_000, 6), 64, None),
    ],
)
def test_a_picture_is_made_smaller_and_never_larger(
    picture_size: tuple[int, int], step: int, wanted: tuple[int, int] | None
) -> None:
    assert target_size(*picture_size, 512, 512, step) == wanted


def test_sizes_come_from_headers_as_the_picture_is_to_be_seen(tmp_path: Path) -> None:
    picture(tmp_path / "b.jpg", (30, 20), turned=True)
    picture(tmp_path / "a.png", (30, 20))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "text.txt").write_text("caption")
    found = pictures_in(tmp_path)
    assert [path.name for path in found] == ["a.png", "b.jpg", "broken.png"]
    assert sizes_of(found) == [(30, 20), (20, 30)]
    assert pictures_in(tmp_path / "none") == []


def test_only_so_many_are_looked_at_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        picture(tmp_path / f"{number}.png", (640, 640))
    monkeypatch.setattr(resize_preview, "LOOKED_AT", 3)
    assert "the first 3 pictures of 5" in preview_html(str(tmp_path), [(512, 512)], 1)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("read again"))
    assert len(sizes_of(pictures_in(tmp_path))) == 3


def test_counts_and_buckets_are_those_of_training() -> None:
    pictures = [(1024, 1024), (1024, 1024), (800, 600), (300, 300)]
    large, small = outcomes(pictures, [(512, 512), (256, 256)], 1)
    assert (large.made, large.small, large.narrow) == (3, 1, 0)
    assert large.buckets == {(512, 512): 2, (576, 384): 1}
    # At its own size, which is not brought up to that of the largest.
    assert (small.made, small.small) == (4, 0) and small.buckets == {(256, 256): 3, (256, 192): 1}
    assert bucket_step([(512, 512), (256, 256)]) == 64 and bucket_step([(512, 512), (128, 128)]) == 8
    (narrow,) = outcomes([(6000, 60)], [(512, 512)], 1)
    assert (narrow.made, narrow.narrow, narrow.buckets) == (1, 1, {})


def test_words_for_nothing(tmp_path: Path) -> None:
    assert "Choose a dataset" in preview_html(" ", [(512, 512)], 1)
    for odd in ("~nobody-of-this-name/x", "x" * 5000, "a\0b"):
        assert "no picture that can be read" in preview_html(odd, [(512, 512)], 1)
    assert "no picture that can be read" in preview_html(str(tmp_path), [(512, 512)], 1)
    picture(tmp_path / "a.png", (64, 64))
    assert "Nothing would be made: 1 picture" in preview_html(str(tmp_path), [(512, 512)], 1)
    assert "Give sizes such as" in resize.outcome(str(tmp_path), "five", 1)


def test_the_new_dataset_trains_each_picture_at_its_own_size(workspace: Workspace) -> None:
    values = {"src": "x", "dst": "small", "max_resolution": ("512x512", "640x320"), "divisible_by": 1}
    resize.prepare(workspace, values)
    dataset = datasets.open_dataset(workspace, str(workspace.datasets / "small" / "dataset.toml"))
    (options,) = dataset.config.datasets
    assert options.resolution == (512, 512) and options.bucket_no_upscale and options.enable_bucket
    assert options.bucket_reso_steps == 64 and dataset.own
    assert dataset.folder == resize.target_folder(workspace, "small")
    before = dataset.path.read_text()
    resize.prepare(workspace, {**values, "max_resolution": ("1024x1024",)})
    assert dataset.path.read_text() == before, "a dataset that is there is not changed"
    resize.prepare(workspace, {**values, "dst": str(workspace.root / "elsewhere")})
    assert not (workspace.root / "elsewhere").exists()


def test_source_and_destination_are_judged_before_a_run(workspace: Workspace, tmp_path: Path) -> None:
    full = tmp_path / "full"
    picture(full / "a.png", (64, 64))
    picture(workspace.datasets / "taken" / "pictures" / "a.png", (64, 64))

    def problems(**values: object) -> dict[str, str]:
        return resize.check(workspace, {"src": str(full), "dst": "new", **values})

    assert problems() == {}
    assert "no pictures" in problems(src=str(tmp_path / "empty"))["src"]
    assert "not a name" in problems(dst="..")["dst"]
    assert "has pictures already" in problems(dst="taken")["dst"]
    assert problems(dst="taken", overwrite=True) == {}
    assert "where the pictures come from" in problems(dst=f"{full}/", overwrite=True)["dst"]
    assert problems(dst="\0/")["dst"] == "is not a path"
    foreign = workspace.datasets / "foreign" / "dataset.toml"
    foreign.parent.mkdir()
    foreign.write_text(f'[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "{full}"\n')
    assert "not made here" in problems(dst="foreign")["dst"]
    with pytest.raises(UserError):
        datasets.make_resized(workspace, "../x", [(512, 512)], 64)


def test_sources_are_the_pictures_of_datasets_without_those_for_regularisation(workspace: Workspace) -> None:
    (demo,) = resize.sources(workspace)
    assert demo == ("demo", "backend/demo/dataset/images")
