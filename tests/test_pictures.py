"""Pictures of every kind become upright sRGB, and every bad one a single clear error."""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageCms, ImageOps

from lfm2_mm import Image, pictures
from lfm2_mm.errors import BadPicture, LfmError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
TURNS = {  # EXIF orientation: what was done to the upright picture before it was stored
    1: None,
    2: Pil.Transpose.FLIP_LEFT_RIGHT,
    3: Pil.Transpose.ROTATE_180,
    4: Pil.Transpose.FLIP_TOP_BOTTOM,
    5: Pil.Transpose.TRANSPOSE,
    6: Pil.Transpose.ROTATE_90,
    7: Pil.Transpose.TRANSVERSE,
    8: Pil.Transpose.ROTATE_270,
}


def corners(height: int = 40, width: int = 60) -> Pil.Image:
    """Four differently coloured quarters: any turn or flip shows."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2] = RED
    array[: height // 2, width // 2 :] = GREEN
    array[height // 2 :, : width // 2] = BLUE
    array[height // 2 :, width // 2 :] = WHITE
    return Pil.fromarray(array)


def packed(picture: Pil.Image, kind: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pil.Image:
    random = np.random.default_rng(seed)
    return Pil.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---- where a picture may come from --------------------------------------------------------------


def test_the_same_picture_from_everywhere(tmp_path: Path) -> None:
    picture = corners()
    data = packed(picture)
    path = tmp_path / "a picture, ünïcode.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    given = [str(path), path, data, bytearray(data), memoryview(data), picture, url]
    for source in [*given, np.asarray(picture), "DATA:" + url[5:]]:
        image = Image.open(source)
        assert (image.height, image.width, image.remarks) == (40, 60, ())
        assert np.array_equal(image.decode(), np.asarray(picture))
        assert image.decode().dtype == np.uint8


def test_a_percent_encoded_data_url() -> None:
    data = packed(corners())
    url = "data:image/png," + "".join(f"%{byte:02x}" for byte in data)
    assert np.array_equal(Image.open(url).decode(), np.asarray(corners()))


def test_the_key_tells_content_apart_and_finds_it_again() -> None:
    one, other = noise(20, 30), noise(20, 30, seed=1)
    assert Image.open(one).key == Image.open(np.asarray(one)).key == Image.open(one).key
    keys = {Image.open(source).key for source in (one, other, packed(one), packed(other))}
    assert len(keys) == 4
    flat = np.zeros((20, 30, 3), np.uint8)
    assert Image.open(flat).key != Image.open(flat.reshape(30, 20, 3)).key


def test_an_array_or_pil_image_may_change_afterwards() -> None:
    array = np.asarray(corners()).copy()
    from_array, picture = Image.open(array), corners()
    from_pil = Image.open(picture)
    array[:] = 0
    picture.paste((0, 0, 0), (0, 0, 60, 40))
    for image in (from_array, from_pil):
        assert tuple(image.decode()[0, 0]) == RED
        with pytest.raises(ValueError, match="read-only"):
            image.decode()[0, 0] = 0


# ---- what is done to it --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(kind: str, orientation: int) -> None:
    turn = TURNS[orientation]
    stored = corners() if turn is None else corners().transpose(turn)
    exif = Pil.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if kind == "WEBP" else {}
    image = Image.open(packed(stored, kind, exif=exif, **how))
    assert (image.height, image.width) == (40, 60)
    pixels = image.decode()
    assert pixels.shape == (40, 60, 3)
    for (y, x), colour in {(5, 5): RED, (5, 55): GREEN, (35, 5): BLUE, (35, 55): WHITE}.items():
        assert np.abs(pixels[y, x].astype(int) - colour).max() < 40


def test_orientation_of_a_png_in_xmp_behind_its_pixels() -> None:
    """Macs write it so; the header alone must know the size."""
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    body = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"iTXt" + body))
    data = packed(corners().transpose(Pil.Transpose.ROTATE_90))
    image = Image.open(data[:-12] + chunk + data[-12:])
    assert (image.height, image.width) == (40, 60)
    assert np.array_equal(image.decode(), np.asarray(corners()))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_alpha_lies_over_white(mode: str) -> None:
    alpha = Pil.new("L", (3, 1))
    alpha.putdata([0, 128, 255])
    if mode in ("RGBA", "RGBa"):
        picture = Pil.new("RGB", (3, 1), (200, 0, 0))
        picture.putalpha(alpha)
        expected = [(255, 255, 255), (227, 127, 127), (200, 0, 0)]
    else:
        picture = Pil.new("L", (3, 1), 100)
        picture = picture.convert("P") if mode == "PA" else picture
        picture.putalpha(alpha)
        expected = [(255,) * 3, (177,) * 3, (100,) * 3]
    image = Image.open(picture.convert(mode))
    assert np.abs(image.decode()[0].astype(int) - expected).max() <= 1


def test_a_transparent_colour_of_a_palette_or_of_rgb_is_white() -> None:
    palette = Pil.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    for kind in ("PNG", "GIF"):
        pixels = Image.open(packed(palette, kind, transparency=0)).decode()
        assert pixels.tolist() == [[[255, 255, 255], [200, 100, 50]]]
    rgb = Pil.new("RGB", (2, 1), (200, 100, 50))
    rgb.putpixel((0, 0), (1, 2, 3))
    pixels = Image.open(packed(rgb, transparency=(1, 2, 3))).decode()
    assert pixels.tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_other_kinds_of_pixels(mode: str) -> None:
    grey = Pil.linear_gradient("L").resize((32, 32))
    picture = grey.point(lambda v: 255 * (v > 127)).convert("1") if mode == "1" else None
    if mode == "LAB":
        lab = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        picture = ImageCms.applyTransform(grey.convert("RGB"), lab)
    elif mode in ("CMYK", "YCbCr", "HSV", "RGBX"):
        picture = grey.convert("RGB").convert(mode)
    picture = picture or grey.convert(mode)
    pixels = Image.open(picture).decode()
    assert pixels.shape == (32, 32, 3)
    target = np.asarray(grey.point(lambda v: 255 * (v > 127)) if mode == "1" else grey)
    assert np.abs(pixels.astype(int) - target[:, :, None]).max() <= 2


def test_a_cmyk_jpeg() -> None:
    picture = Pil.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(Image.open(packed(picture, "JPEG")).decode() - np.array(RED)).max() < 8


def test_sixteen_bits_are_rounded_to_eight() -> None:
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    expected = [0, 0, 1, 128, 255]
    for kind in ("PNG", "TIFF"):
        pixels = Image.open(packed(Pil.fromarray(values), kind)).decode()
        assert pixels[0, :, 0].tolist() == expected
    assert Image.open(values).decode()[0, :, 1].tolist() == expected
    assert Image.open(values.astype(">u2")).decode()[0, :, 2].tolist() == expected


def test_arrays_of_every_kind() -> None:
    grey = np.array([[0, 51, 255]], np.uint8)
    for array in (
        grey,
        grey[:, :, None],
        grey / 255,
        (grey / 255).astype(np.float32),
        (grey / 255).astype(np.float16),
        np.stack([grey] * 3, -1),
        np.stack([grey] * 3 + [np.full_like(grey, 255)], -1),
        np.asfortranarray(np.stack([grey] * 3, -1)),
        np.stack([grey] * 3, -1)[:, ::-1][:, ::-1],
    ):
        image = Image.open(array)
        assert (image.height, image.width) == (1, 3)
        assert image.decode().tolist() == [[[0] * 3, [51] * 3, [255] * 3]]
    assert Image.open(np.array([[True, False]])).decode()[0, :, 0].tolist() == [255, 0]


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and green swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    text = "sRGB built-in".encode("utf-16-be")
    where = profile.index(text)
    profile[where : where + len(text)] = "Swap built-in".encode("utf-16-be")
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_colour_profile_is_applied(kind: str) -> None:
    data = packed(Pil.new("RGB", (16, 16), RED), kind, icc_profile=swapped_profile())
    pixel = Image.open(data).decode()[8, 8].astype(int)
    assert pixel[1] > 200 and pixel[0] < 80  # red by the profile's swapped primaries is green


def test_a_profile_of_srgb_changes_no_pixel_and_a_transparent_picture_keeps_its_alpha() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = noise(16, 16)
    assert np.array_equal(
        Image.open(packed(picture, icc_profile=srgb)).decode(), np.asarray(picture)
    )
    clear = Pil.new("RGBA", (4, 4), (*RED, 0))
    assert tuple(Image.open(packed(clear, icc_profile=swapped_profile())).decode()[0, 0]) == WHITE


@pytest.mark.parametrize("profile", [b"no profile", b"", b"\0" * 500])
def test_a_broken_or_foreign_profile_is_ignored(profile: bytes) -> None:
    picture = noise(16, 16)
    data = packed(picture, icc_profile=profile)
    assert np.array_equal(Image.open(data).decode(), np.asarray(picture))
    grey = packed(picture.convert("L"), icc_profile=swapped_profile())  # of RGB, on grey pixels
    assert np.array_equal(Image.open(grey).decode()[:, :, 0], np.asarray(picture.convert("L")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_the_first_frame_is_looked_at_and_it_is_said(kind: str) -> None:
    frames = [Pil.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = packed(frames[0], kind, save_all=True, append_images=frames[1:])
    image = Image.open(data)
    assert np.abs(image.decode()[8, 8].astype(int) - RED).max() < 8
    (remark,) = image.remarks
    assert "first" in remark
    assert Image.open(packed(frames[0], kind)).remarks == ()


def test_a_large_jpeg_can_come_smaller_but_not_below_what_is_asked() -> None:
    image = Image.open(packed(noise(800, 1200), "JPEG"))
    assert image.decode().shape == (800, 1200, 3)
    assert image.decode(400, 600).shape == (400, 600, 3)
    assert image.decode(401, 600).shape == (800, 1200, 3)
    assert image.decode(1, 1).shape == (100, 150, 3)
    exif = Pil.Exif()
    exif[0x0112] = 6
    turned = Image.open(packed(noise(800, 1200), "JPEG", exif=exif))
    assert (turned.height, turned.width) == (1200, 800)
    assert turned.decode(600, 300).shape == (600, 400, 3)
    assert Image.open(packed(noise(80, 120))).decode(10, 10).shape == (80, 120, 3)


def test_only_the_header_is_read_when_opened() -> None:
    """Cut after the header, it opens with its size, and fails when its pixels are wanted."""
    data = packed(noise(600, 900), "JPEG")
    image = Image.open(data[: len(data) // 2])
    assert (image.height, image.width) == (600, 900)
    with pytest.raises(BadPicture, match="damaged or cut off"):
        image.decode()


def test_threads_do_not_disturb_each_other() -> None:
    image, found = Image.open(packed(noise(300, 300), "PNG")), []

    def work() -> None:
        found.extend(bool((image.decode() == np.asarray(noise(300, 300))).all()) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20


# ---- bad input -------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (b"", "nothing is in it"),
        (b"\0" * 100, "no picture, or of an unknown kind; JPEG, PNG"),
        (b"hello, I am a text", "no picture, or of an unknown kind"),
        (b"%PDF-1.7 and so on", "export the page as PNG"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 50, "HEIC is not read; export it as JPEG"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG holds no pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture, or of an unknown"),
        (bomb(20_000, 20_000), "more than the 100 million"),
        (bomb(12_000, 10_000), "12000 x 10000 pixels are more than the 100 million"),
        (bomb(2_000_000_000, 2), "more than the 100 million"),
        (bomb(0, 10), "no picture, or of an unknown kind|has no pixels"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,", "nothing is in it"),
        ("https://example.com/cat.png", "not downloaded; save it"),
        ("no/such/picture.png", "no/such/picture.png is not there"),
        ("a\0b.png", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("", "is not there|is a folder"),
        (os.sep, "is a folder"),
        (7, "no picture can be made of int; give a path"),
        (None, "no picture can be made of NoneType"),
        (["a.png"], "no picture can be made of list"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5, 2), np.uint8), "shape is .5, 5, 2."),
        (np.zeros((3, 5, 5), np.uint8), "shape is .3, 5, 5."),
        (np.zeros((2, 5, 5, 3), np.uint8), "shape is"),
        (np.zeros(5, np.uint8), "shape is"),
        (np.full((4, 4, 3), np.nan), "nan to nan; they must lie in 0 to 1"),
        (np.array([[0.5, np.nan]]), "must lie in 0 to 1"),
        (np.array([[0.5, np.inf]]), "must lie in 0 to 1"),
        (np.full((4, 4), 255.0), "255.0; they must lie in 0 to 1"),
        (np.full((4, 4), -0.1), "must lie in 0 to 1"),
        (np.zeros((4, 4), np.int64), "holds int64"),
        (np.zeros((4, 4), np.complex64), "holds complex64"),
        (np.full((4, 4), "x"), "holds <U1"),
        (np.full((4, 4), None), "holds object"),
        (np.full((4, 4), -1, np.int32), "must lie in 0 to 65535"),
        (Pil.new("RGB", (0, 4)), "it has no pixels"),
        (Pil.fromarray(np.full((4, 4), np.nan, np.float32)), "must lie in 0 to 1"),
    ],
    ids=lambda it: repr(it)[:30] if not isinstance(it, str) or len(it) < 40 else it[:30],
)
def test_one_clear_error_each(given: object, why: str) -> None:
    with pytest.raises(BadPicture, match=why) as error:
        Image.open(given).decode()
    assert isinstance(error.value, LfmError)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_a_picture_cut_off_anywhere_is_an_error_or_whole(kind: str) -> None:
    """Never a crash of another kind; what decodes has the size that was told."""
    data = packed(noise(40, 50), kind)
    failed = 0
    for place in range(0, len(data), max(1, len(data) // 60)):
        try:
            image = Image.open(data[:place])
            assert image.decode().shape == (image.height, image.width, 3)
        except BadPicture:
            failed += 1
    assert failed > 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO"])
def test_flipped_bytes_are_an_error_or_a_picture(kind: str) -> None:
    random, data = np.random.default_rng(1), packed(noise(40, 50), kind)
    for _ in range(100):
        broken = bytearray(data)
        for place in random.integers(0, min(len(data), 400), 3):
            broken[place] = random.integers(0, 256)
        try:
            image = Image.open(bytes(broken))
            assert image.decode().dtype == np.uint8
        except BadPicture:
            pass


def test_a_file_beyond_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(pictures.MAX_BYTES * 30)  # sparse: takes no room
    with pytest.raises(BadPicture, match="larger than 128 MiB; save it smaller"):
        Image.open(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
@pytest.mark.parametrize("kind", ["device", "pipe", "forbidden"])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "forbidden":
        path.write_bytes(b"x")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    with pytest.raises(BadPicture, match="is no file|cannot be read"):
        Image.open("/dev/zero" if kind == "device" else path)


def test_no_warning_reaches_the_user(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(BadPicture):
        Image.open(bomb(12_000, 10_000))
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"  # cut off
    Image.open(packed(corners(), "JPEG", exif=exif)).decode()
    assert [str(warning.message) for warning in recwarn] == []


def test_fixtures_of_the_data_folder(data: Path) -> None:
    paths = sorted((data / "vision/fixtures").glob("*.jpg"))
    assert len(paths) >= 6
    for path in paths:
        image = Image.open(path)
        with Pil.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        assert (image.width, image.height) == upright.size
        assert np.array_equal(image.decode(), np.asarray(upright)), path
