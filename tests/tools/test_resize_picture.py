"""The pixels of smaller pictures: every kind of file, upright, whole, each from the original."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from backend.tools.resize_picture import Look, Target, Task, encode, make, read, shrink

AREA = (64, 64)
FLAGS = {"area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC, "lanczos4": cv2.INTER_LANCZOS4}
PNG, JPEG = Look(png=True), Look()


def smooth(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, channels] of broad shapes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)


def result_of(path: Path, look: Look = PNG, area: tuple[int, int] = AREA) -> Image.Image:
    """What is made of a picture, as it reads back; closed."""
    with Image.open(path) as image:
        size = image.size
    target = path.with_name(f"made{'.png' if look.png else '.jpg'}")
    outcome = make(Task(path, size, (Target(target, area),), ()), look)
    assert not outcome.broken, outcome
    with Image.open(target) as image:
        image.load()
    assert outcome.sizes == (image.size,) and outcome.bytes == target.stat().st_size
    return image


def test_the_shape_is_kept_and_the_edges_are_cut_alike(tmp_path: Path) -> None:
    """A circle stays a circle, and in the middle; the reference swaps the sides and makes it an ellipse."""
    pixels = np.zeros((300, 600), np.uint8)
    cv2.circle(pixels, (300, 150), 100, 255, -1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = np.asarray(result_of(tmp_path / "a.png"))
    cut = np.asarray(result_of(tmp_path / "a.png", Look(16, png=True)))
    assert (whole.shape, cut.shape) == ((45, 90), (32, 80))
    for made in (whole, cut):
        rows, columns = np.nonzero(made > 127)
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 1 and abs(np.ptp(rows) - 29) <= 1
        height, width = made.shape
        assert abs(rows.mean() - (height - 1) / 2) <= 0.75 and abs(columns.mean() - (width - 1) / 2) <= 0.75
    assert np.array_equal(cut, whole[6:38, 5:85])


@pytest.mark.parametrize("name", ["area", "cubic", "lanczos4"])
def test_interpolation_is_opencvs(name: str) -> None:
    pixels = smooth(300, 200)
    flag = {"area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC, "lanczos4": cv2.INTER_LANCZOS4}[name]
    assert np.array_equal(
        shrink(pixels, AREA, Look(interpolation=name)), cv2.resize(pixels, (78, 52), interpolation=flag)
    )


def test_the_mean_of_an_area() -> None:
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[::2, ::2] = (200, 100, 40)
    assert (shrink(pixels, AREA, JPEG) == (50, 25, 10)).all()


def test_a_picture_of_just_that_area_keeps_its_pixels(tmp_path: Path) -> None:
    for channels in (3, 4):
        pixels = smooth(128, 32, channels)
        pixels[:4, :, 3:] = 0  # what lies hidden stays too
        Image.fromarray(pixels).save(tmp_path / "a.png")
        assert np.array_equal(np.asarray(result_of(tmp_path / "a.png")), pixels)
    with pytest.raises(ValueError, match="cannot be made 64x65"):
        shrink(pixels, (64, 65), JPEG)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_pictures_are_turned_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((60, 120, 3), np.uint8)
    upright[:30, :60], upright[:30, 60:], upright[30:, :60] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # The standard's words: row 0 and column 0 of what is stored are which sides of the picture.
    stored = upright.swapaxes(0, 1) if orientation > 4 else upright
    stored = stored[::-1] if orientation in (3, 4, 6, 7) else stored  # row 0 is the bottom, or the right
    stored = stored[:, ::-1] if orientation in (2, 3, 7, 8) else stored  # column 0 is the right, or the bottom
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a{suffix}", exif=exif, quality=100)
    made = result_of(tmp_path / f"a{suffix}")
    assert made.size == (90, 45) and 0x0112 not in made.getexif()
    found = np.asarray(made)
    for (row, column), colour in {(10, 20): (250, 0, 0), (10, 70): (0, 250, 0), (35, 20): (0, 0, 250)}.items():
        assert np.abs(found[row, column].astype(int) - colour).max() <= 8


def rgba(path: Path) -> np.ndarray:
    """A red disc, 200x200; under what is transparent around it lies a green that nobody sees."""
    pixels = np.full((200, 200, 4), (0, 255, 0, 0), np.uint8)
    cv2.circle(pixels, (100, 100), 70, (255, 0, 0, 255), -1)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("name", ["area", "cubic", "lanczos4"])
def test_transparency_has_no_fringe(tmp_path: Path, name: str) -> None:
    pixels = rgba(tmp_path / "a.png")
    made = result_of(tmp_path / "a.png", Look(interpolation=name, png=True))
    assert made.mode == "RGBA"
    found = np.asarray(made)
    edge = (found[..., 3] > 20) & (found[..., 3] < 235)
    # Where only the area is averaged, a pixel is partly covered; all that is seen of it is red.
    assert edge.sum() > 30 or name != "area"
    seen = found[found[..., 3] > 5]
    assert (seen[:, 0] >= 254).all() and (seen[:, 1:3] == 0).all()
    alpha = cv2.resize(pixels[..., 3], (64, 64), interpolation=FLAGS[name])
    assert np.abs(found[..., 3].astype(int) - alpha).max() <= 1


def test_transparency_is_white_in_a_jpeg_and_said_so(tmp_path: Path) -> None:
    rgba(tmp_path / "a.png")
    made = np.asarray(result_of(tmp_path / "a.png", JPEG))
    assert made.shape == (64, 64, 3) and (made[0] >= 253).all() and (made[32, 32] >= (252, 0, 0)).all()
    assert made[32, 32, 1:].max() <= 3 and made[..., 0].min() >= 250  # nowhere darker than red on white
    assert read(tmp_path / "a.png", keep_alpha=False)[2] and not read(tmp_path / "a.png", keep_alpha=True)[2]
    opaque = np.full((100, 100, 4), 255, np.uint8)
    Image.fromarray(opaque).save(tmp_path / "b.png")
    assert read(tmp_path / "b.png", keep_alpha=True)[0].shape == (100, 100, 3)
    assert not read(tmp_path / "b.png", keep_alpha=False)[2]


def test_every_mode_of_colour(tmp_path: Path) -> None:
    pixels = smooth(120, 80)
    grey = pixels[..., 0]
    image = Image.fromarray(pixels)
    image.save(tmp_path / "rgb.bmp")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    image.quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    expected = {"rgb.bmp": (pixels, 0), "cmyk.jpg": (pixels, 4), "grey.png": (grey, 0), "deep.png": (grey, 0)}
    expected |= {"palette.png": (pixels, 40), "bits.png": ((grey > 127) * np.uint8(255), 0)}
    for name, (wanted, most) in expected.items():
        found = read(tmp_path / name, keep_alpha=True)[0]
        assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).max() <= most, name
        assert result_of(tmp_path / name).mode == ("L" if wanted.ndim == 2 else "RGB"), name
        result_of(tmp_path / name, JPEG)


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100), np.uint8)
    pixels[:, 50:] = 1
    image = Image.fromarray(pixels, mode=None).convert("P")
    image.putpalette([0, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png", transparency=0)
    made = np.asarray(result_of(tmp_path / "a.png"))
    assert made[32, 5, 3] == 0 and made[32, 60].tolist() == [0, 255, 0, 255]


def test_jpeg_quality_and_sampling() -> None:
    with Image.open(io.BytesIO(encode(smooth(64, 64), False, None))) as image:
        assert max(max(table) for table in image.quantization.values()) == 1  # quality 100
        assert [part[1:3] for part in image.layer] == [(1, 1)] * 3  # 4:4:4
        assert not image.getexif()


@pytest.mark.parametrize("png", [True, False])
def test_the_colour_profile_stays_where_it_is_true(tmp_path: Path, png: bool) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(70_000)
    image = Image.fromarray(smooth(100, 100))
    image.save(tmp_path / "rgb.jpg", icc_profile=profile)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", icc_profile=profile[:16] + b"CMYK" + profile[20:])
    assert result_of(tmp_path / "rgb.jpg", Look(png=png)).info["icc_profile"] == profile
    assert "icc_profile" not in result_of(tmp_path / "cmyk.jpg", Look(png=png)).info


@pytest.mark.parametrize("look", [PNG, JPEG])
def test_every_size_is_made_from_the_original(tmp_path: Path, look: Look) -> None:
    """The reference makes each size from the one before it."""
    Image.fromarray(smooth(300, 200)).save(tmp_path / "a.png")
    areas = [(128, 128), (64, 64), (32, 32), (96, 96)]

    def bytes_of(order: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        targets = tuple(Target(tmp_path / f"{area[0]}", area) for area in order)
        make(Task(tmp_path / "a.png", (300, 200), targets, ()), look)
        return {target.area: target.path.read_bytes() for target in targets}

    alone = {area: bytes_of([area])[area] for area in areas}
    assert bytes_of(areas) == bytes_of(areas[::-1]) == bytes_of(sorted(areas)) == alone
    assert len(set(alone.values())) == 4


def test_what_is_broken_is_told_and_writes_nothing(tmp_path: Path) -> None:
    Image.fromarray(smooth(300, 200)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    for cut in (0, 1, 100, len(data) // 2):
        (tmp_path / "a.jpg").write_bytes(data[:cut])
        targets = (Target(tmp_path / "b.jpg", AREA),)
        outcome = make(Task(tmp_path / "a.jpg", (300, 200), targets, ((tmp_path / "a.jpg", tmp_path / "c.jpg"),)), JPEG)
        assert outcome.broken and not outcome.sizes
        assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
