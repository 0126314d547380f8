"""Picture files: found in order, checked by decoding, turned into the pixels a bucket wants."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backend.data.pictures import Facts, Picture, list_pictures, load_pixels, measure_pictures, resize
from backend.errors import UserError


def picture(path: Path, resized: tuple[int, int], bucket: tuple[int, int] | None = None) -> Picture:
    return Picture(path, resized, resized, bucket or resized, "", 1)


def rgb(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Pixels as loaded at the file's own size, back in 0..255, height x width x 3."""
    return ((load_pixels(picture(path, size)) + 1) * 127.5).round().byte().movedim(0, -1).numpy()


def test_pictures_are_listed_in_natural_order_without_folders_below(tmp_path):
    names = ["b10.png", "b9.PNG", "a.JPG", "a.png", "c.jpeg", "d.webp", "e.bmp", "B1.png"]
    for name in [*names, "notes.txt", "x.heic", "._a.png"]:
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "z.png").touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.name for path in list_pictures(tmp_path)]
    assert found == ["a.JPG", "a.png", "B1.png", "b9.PNG", "b10.png", "c.jpeg", "d.webp", "e.bmp"]


def test_a_missing_folder_names_its_near_sibling(tmp_path):
    (tmp_path / "monsters").mkdir()
    with pytest.raises(UserError, match=r"image_dir: there is no folder .*monstres: did you mean .*monsters\?"):
        list_pictures(tmp_path / "monstres")
    with pytest.raises(UserError, match="working directory"):
        list_pictures(tmp_path / "qqq" / "deeper")


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="is a file"):
        list_pictures(tmp_path / "a.png")


def test_a_folder_without_pictures_names_the_extensions_and_the_folder_below(tmp_path):
    with pytest.raises(UserError, match=r"image_dir: no pictures in .* \.png, \.jpg, \.jpeg, \.webp, \.bmp"):
        list_pictures(tmp_path)
    (tmp_path / "10_cat").mkdir()
    (tmp_path / "10_cat" / "a.png").touch()
    with pytest.raises(UserError, match="10_cat has some"):
        list_pictures(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
def test_a_truncated_picture_is_found_whatever_its_format(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    good, cut = tmp_path / f"good_{name}", tmp_path / f"cut_{name}"
    Image.fromarray(noise).save(good)
    cut.write_bytes(good.read_bytes()[:-200])
    assert measure_pictures([good]) == [Facts((64, 48))]
    with pytest.raises(UserError, match=f"image_dir: cannot decode .*cut_{name}.*: replace or remove it"):
        measure_pictures([good, cut, good])
    with pytest.raises(UserError, match=f"cut_{name}"):
        load_pixels(picture(cut, (64, 48)))


def test_damage_of_every_kind_is_one_line_and_all_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    # A header that claims 60,000 x 60,000 pixels: a decompression bomb.
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(UserError) as caught:
        measure_pictures(sorted(tmp_path.iterdir()))
    assert all(name in str(caught.value) for name in ("empty.png", "text.jpg", "bomb.png"))
    assert "\n" not in str(caught.value)
    assert "bomb.png (Image size (3600000000 pixels) exceeds limit" in str(caught.value)


def test_exif_orientation_turns_size_and_pixels(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (255, 0, 0)  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert measure_pictures([tmp_path / "a.png"]) == [Facts((20, 40))]
    turned = rgb(tmp_path / "a.png", (20, 40))
    assert turned.shape == (40, 20, 3)
    assert (turned[:20] == (255, 0, 0)).all() and (turned[20:] == 0).all()


def test_alpha_is_flattened_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (200, 0, 0, 255)
    pixels[:, 4:] = (200, 0, 0, 51)  # a fifth
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = rgb(tmp_path / "a.png", (8, 8))
    assert (loaded[:, :4] == (200, 0, 0)).all()
    assert np.abs(loaded[0, 6].astype(int) - (244, 204, 204)).max() <= 1


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (4, 0, 8, 8))
    image.save(tmp_path / "a.png", transparency=0)
    loaded = rgb(tmp_path / "a.png", (8, 8))
    assert (loaded[:, :4] == 255).all() and (loaded[:, 4:] == (40, 50, 60)).all()


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "a.png")
    assert (rgb(tmp_path / "a.png", (8, 8)) == 128).all()


@pytest.mark.parametrize("mode, expected", [("L", (90, 90, 90)), ("1", (255, 255, 255)), ("LA", (90, 90, 90))])
def test_gray_becomes_rgb(tmp_path, mode, expected):
    Image.new("L", (8, 8), 90 if mode != "1" else 255).convert(mode).save(tmp_path / "a.png")
    assert (rgb(tmp_path / "a.png", (8, 8)) == expected).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = rgb(tmp_path / "a.jpg", (16, 16))[8, 8].astype(int)
    assert red > 240 and green < 15 and blue < 15


def test_pixels_are_centred_crops_in_minus_one_to_one(draw):
    path = draw("a.png", (96, 64), value=0)
    pixels = load_pixels(picture(path, (96, 64), (64, 64)))
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32
    # 16 columns go on either side, so the edge between black and white stays in the middle.
    assert (pixels[:, :, :32] == -1).all() and (pixels[:, :, 32:] == 1).all()


def test_the_crop_is_centred_in_height_too(tmp_path):
    column = np.repeat(np.arange(64, dtype=np.uint8)[:, None, None], 16, axis=1).repeat(3, axis=2)
    Image.fromarray(column).save(tmp_path / "a.png")
    pixels = ((load_pixels(picture(tmp_path / "a.png", (16, 64), (16, 32))) + 1) * 127.5).round()
    assert pixels[0, :, 0].tolist() == list(range(16, 48))


def test_flip_mirrors_the_cropped_picture(draw):
    item = picture(draw("a.png", (95, 64), value=7), (95, 64), (64, 64))
    assert torch.equal(load_pixels(item, flip=True), load_pixels(item).flip(-1))
    assert not torch.equal(load_pixels(item, flip=True), load_pixels(item))


def test_resizing_is_by_area_down_and_by_lanczos_up():
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    quarter = noise.reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(resize(noise, (48, 32)).astype(float) - quarter).max() <= 0.5
    assert np.array_equal(resize(noise, (192, 128)), cv2.resize(noise, (192, 128), interpolation=cv2.INTER_LANCZOS4))
    assert resize(noise, (96, 64)) is noise
