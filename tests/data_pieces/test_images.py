"""Opening images: every format of the list, texts and profiles of any size, and whatever damage."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from backend.data.decode import flatten
from backend.data.pictures import measure_pictures
from backend.errors import UserError
from backend.images import DECODE_ERRORS, EXTENSIONS, FOREIGN, FORMATS, opened, orientation, reason, upright

SIZE = (24, 16)


def drawn(mode: str = "RGB") -> Image.Image:
    """Left half dark, right half light, none of them at an end of the scale."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)
    pixels[:, : SIZE[0] // 2] = 50
    return Image.fromarray(pixels).convert(mode)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    memory = io.BytesIO()
    drawn(mode).save(memory, kind, **options)
    return memory.getvalue()


# DDS writes as well as it reads; MPO is a JPEG with a second picture.
SAVED = {kind: {"quality": 100} if kind in ("JPEG", "AVIF", "WEBP") else {} for kind in FORMATS if kind != "MPO"}


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_every_format_of_the_list_is_read(tmp_path: Path, ending: str) -> None:
    kind = next(kind for kind, endings in FORMATS.items() if ending in endings)
    path = tmp_path / f"a{ending.upper()}"
    path.write_bytes(encoded(kind, **SAVED.get(kind, {})))
    assert measure_pictures([path])[0].size == SIZE
    with opened(path) as image:
        pixels = np.asarray(flatten(upright(image)), dtype=int)
    assert abs(pixels[:, 2:10] - 50).max() < 16 and abs(pixels[:, 14:22] - 200).max() < 16


def test_no_format_is_read_and_foreign_at_once() -> None:
    assert not set(EXTENSIONS) & set(FOREIGN)


def test_of_an_animation_the_first_picture_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png", "a.tiff", "a.avif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with opened(tmp_path / name) as image:
            red, _, blue = flatten(upright(image)).getpixel((3, 3))
        assert red > 200 > 60 > blue


def texts(size: int) -> dict[str, bytes]:
    """PNGs with so many characters of text in each kind of chunk, and with such a profile."""
    found = {}
    for name, packed in (("tEXt", False), ("zTXt", True), ("iTXt", True)):
        info = PngImagePlugin.PngInfo()
        add = info.add_itxt if name == "iTXt" else info.add_text
        add("workflow", "x" * size, zip=packed)
        found[name] = encoded("PNG", pnginfo=info)
    found["iCCP"] = encoded("PNG", icc_profile=b"\0" * size)
    found["behind"] = _behind(b"zTXt", b"note\0\0" + zlib.compress(b"x" * size))
    return found


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _behind(kind: bytes, data: bytes) -> bytes:
    """A PNG with a chunk behind its pixels."""
    plain = encoded("PNG")
    return plain[:-12] + _chunk(kind, data) + plain[-12:]


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP", "behind"])
def test_megabytes_of_text_in_a_png_are_passed_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(texts(3_000_000)[kind])
    assert measure_pictures([path])[0].size == SIZE
    with opened(path) as image:
        assert np.array_equal(np.asarray(upright(image)), np.asarray(drawn()))
        assert "workflow" not in image.info


def test_texts_that_turn_a_picture_and_small_profiles_are_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    info = PngImagePlugin.PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", xmp)
    info.add_text("parameters", "x" * 3_000_000, zip=True)
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG", pnginfo=info, icc_profile=profile))
    with opened(path) as image:
        assert (orientation(image), image.info["icc_profile"]) == (6, profile)
        assert upright(image).size == SIZE[::-1]
    assert measure_pictures([path])[0].size == SIZE[::-1]


def test_a_text_that_unpacks_to_gigabytes_is_never_unpacked(tmp_path: Path) -> None:
    bomb = zlib.compress(b"\0" * 50_000_000, 9)
    for kind, data in ((b"zTXt", b"XML:com.adobe.xmp\0\0" + bomb), (b"iCCP", b"p\0\0" + bomb)):
        plain = encoded("PNG")
        path = tmp_path / "a.png"
        path.write_bytes(plain[:33] + _chunk(kind, data) * 20 + plain[33:])
        assert measure_pictures([path])[0].size == SIZE


@pytest.mark.parametrize(
    ("mode", "kind"), [("F", "TIFF"), ("I", "TIFF"), ("LAB", "TIFF")], ids=lambda value: str(value)
)
def test_pixels_of_a_range_that_nobody_knows_are_refused_by_name(tmp_path: Path, mode: str, kind: str) -> None:
    path = tmp_path / "a.tif"
    Image.new(mode, SIZE).save(path, kind)
    with pytest.raises(UserError, match=rf"a\.tif \(its pixels are of the kind {mode}; save it with 8 or 16 bits"):
        measure_pictures([path])


def test_a_script_that_is_called_a_picture_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UserError, match="empty, damaged or not a picture"):
        measure_pictures([tmp_path / "a.png"])


ENCODED = {kind: encoded(kind, **options) for kind, options in SAVED.items()} | {
    "GIF P": encoded("GIF", "P"),
    "PNG RGBA": encoded("PNG", "RGBA"),
    "TIFF lzw": encoded("TIFF", compression="tiff_lzw"),
    "PNG text": texts(3000)["zTXt"],
    "JPEG exif": encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
}


@settings(deadline=None)
@given(
    kind=st.sampled_from(sorted(ENCODED)),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    cut=st.none() | st.integers(0, 2000),
    more=st.binary(max_size=40),
)
def test_a_damaged_image_is_decoded_or_is_one_line(
    kind: str, changes: list[tuple[int, int]], cut: int | None, more: bytes
) -> None:
    data = bytearray(ENCODED[kind])
    for place, value in changes:
        data[place % len(data)] = value
    data = bytes(data[:cut]) + more
    ending = FORMATS[kind.split()[0]][0]
    try:
        with opened(io.BytesIO(data), f"a{ending}") as image:
            if image.width * image.height > 4_000_000:
                return
            assert flatten(upright(image)).mode == "RGB"
    except DECODE_ERRORS as error:
        why = reason(error)
        assert why and "\n" not in why and "object at" not in why


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0", "a HEIC picture"),
        (b"\xff\n\xfa\x7f\x01", "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"", "empty, damaged or not a picture"),
        (b"Not a picture", "empty, damaged or not a picture"),
    ],
)
def test_what_is_only_named_like_a_picture_is_told_by_what_it_is(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError, match=told) as caught:
        measure_pictures([path])
    assert str(path) in str(caught.value)
