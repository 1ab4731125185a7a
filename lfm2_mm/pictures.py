"""A path, bytes, PIL, numpy or data URL -> Image: the size at once, the pixels when asked for.

Knows limits and what can go wrong; knows nothing of tiles and models.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import threading
import urllib.parse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pil
from PIL import UnidentifiedImageError
from PIL.ImageFile import ImageFile

from lfm2_mm import rgb
from lfm2_mm.errors import BadPicture, PictureTooLarge
from lfm2_mm.types import Image

MAX_PIXELS = 100_000_000  # decoding so many takes 0.7 GB for a moment
MAX_BYTES = 128 << 20
# Other formats that Pillow knows start programs (EPS), or no camera or screen writes them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000")
READABLE = "JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF, PPM, ICO and JPEG 2000 are read"
_warnings = threading.Lock()


def open_picture(given: object) -> Image:
    """The picture in a file, in bytes, in a data URL, in a PIL image or in an array.

    Of files and bytes only the header is read here. Arrays are (height, width) grey or (height,
    width, 3 or 4) RGB(A): uint8, uint16, bool, or floats in 0 to 1. Raises BadPicture.
    """
    if isinstance(given, bytes | bytearray | memoryview):
        return _packed(bytes(given), "the bytes given")
    if isinstance(given, str) and given[:5].lower() == "data:":
        return _packed(_data_url(given), "the data URL")
    if isinstance(given, str | os.PathLike):
        return _packed(_file(given), os.fsdecode(given))
    if isinstance(given, Pil.Image):
        return _from_pil(given)
    if isinstance(given, np.ndarray):
        with _told("the array"):
            return _from_pixels(rgb.from_array(given))
    raise BadPicture(
        f"no picture can be made of {type(given).__name__}; give a path, bytes, a PIL image, a "
        "numpy array or a data: URL"
    )


@dataclass(frozen=True, eq=False)
class Packed:
    """A picture file's bytes, decoded anew whenever asked."""

    data: bytes
    name: str
    orientation: int  # EXIF's
    profile: bytes | None  # of its colours, where they can be converted last

    @property
    def turned(self) -> bool:
        return self.orientation > 4

    def stored(self, height: int, width: int) -> np.ndarray:
        with _told(self.name, self.data):
            with _silent():
                picture = _header(self.data)
            if height and width:  # a JPEG can come out at 1/2, 1/4 or 1/8, not below these
                picture.draft(None, (width, height))
            if picture.format in ("TIFF", "ICO"):  # they warn of odd metadata only now
                with _silent():
                    picture.load()
            return rgb.eight_bit(picture, self.profile)

    def finish(self, pixels: np.ndarray) -> np.ndarray:
        return rgb.finish(pixels, self.orientation, self.profile)

    def key(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, eq=False)
class Unpacked:
    """Pixels that were given as such: (height, width, 3) uint8."""

    pixels: np.ndarray
    turned: bool = False

    def stored(self, height: int, width: int) -> np.ndarray:
        return self.pixels

    def finish(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def key(self) -> str:
        shape = repr(self.pixels.shape).encode()
        return hashlib.sha256(shape + self.pixels.data).hexdigest()


def _packed(data: bytes, name: str) -> Image:
    if not data:
        raise BadPicture(f"{name}: nothing is in it")
    if len(data) > MAX_BYTES:
        raise PictureTooLarge(f"{name}: it is larger than {MAX_BYTES >> 20} MiB; save it smaller")
    with _told(name, data), _silent():
        picture = _header(data)
        width, height = _bounded(picture.size, name)
        orientation = 1 if _upright(picture, data) else rgb.orientation(picture)
        source = Packed(data, name, orientation, rgb.late_profile(picture))
        remarks = _remarks(picture, name)
    if source.turned:
        height, width = width, height
    return Image(height, width, source, remarks)


def _from_pil(picture: Pil.Image) -> Image:
    _bounded(picture.size, "the PIL image")
    with _told("the PIL image"):
        with _silent():
            picture.load()
            orientation = rgb.orientation(picture)
        late = rgb.late_profile(picture)
        return _from_pixels(rgb.finish(rgb.eight_bit(picture, late), orientation, late))


def _from_pixels(pixels: np.ndarray) -> Image:
    height, width = _bounded(pixels.shape[:2], "the array")
    pixels.flags.writeable = False  # the key stays true
    return Image(height, width, Unpacked(pixels))


def _header(data: bytes) -> ImageFile:
    return Pil.open(io.BytesIO(data), formats=FORMATS)


@contextmanager
def _silent() -> Iterator[None]:
    """Pillow's warnings of sizes, which are checked here, and of odd metadata, which do no harm.

    One thread at a time, since catch_warnings changes what others see: so not around decoding.
    """
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _bounded(size: tuple[int, ...], name: str) -> tuple[int, int]:
    """Both sides of a picture that is neither empty nor beyond the limit."""
    if not all(size):
        raise BadPicture(f"{name}: it has no pixels")
    if size[0] * size[1] > MAX_PIXELS:
        raise PictureTooLarge(
            f"{name}: {size[0]} x {size[1]} pixels are more than the {MAX_PIXELS // 10**6} million "
            "that are decoded; save it smaller"
        )
    return size[0], size[1]


def _upright(picture: ImageFile, data: bytes) -> bool:
    """Whether EXIF need not be asked: Pillow turns TIFFs itself, and most PNGs have none."""
    marks = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
    if picture.format == "PNG":  # all of it would be decoded in search of EXIF
        return not any(mark in data for mark in marks)
    return picture.format == "TIFF"


def _remarks(picture: ImageFile, name: str) -> tuple[str, ...]:
    if picture.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(picture, "is_animated", False):
        return (f"{name} is animated: only its first frame is looked at",)
    if picture.format == "TIFF" and getattr(picture, "n_frames", 1) > 1:
        return (f"{name} has several pages: only the first is looked at",)
    return ()


def _file(path: str | os.PathLike[str]) -> bytes:
    name = os.fsdecode(path)
    if name[:7].lower() in ("http://", "https:/"):
        raise BadPicture(f"{name}: pictures are not downloaded; save it and give the file")
    try:
        kind = Path(name).stat().st_mode
        if stat.S_ISDIR(kind):
            raise BadPicture(f"{name or 'an empty path'} is a folder; give the path of a picture")
        if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
            raise BadPicture(f"{name} is no file; give the path of a picture")
        with Path(name).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadPicture(f"{name} is not there; give the path of a picture") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadPicture(f"{name[:200]!r} cannot be read: {why}") from error


def _data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise BadPicture("the data URL has no comma; it is data:image/png;base64,... or the like")
    try:
        if head.lower().endswith(";base64"):
            return base64.b64decode(urllib.parse.unquote(body), validate=True)
        return urllib.parse.unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(f"the data URL is not valid base64: {error}") from error


@contextmanager
def _told(name: str, data: bytes = b"") -> Iterator[None]:
    """Whatever a decoder raises becomes one BadPicture that says what to do."""
    try:
        yield
    except (BadPicture, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadPicture(f"{name}: {_unknown(data)}") from error
    except rgb.NotColours as error:
        raise BadPicture(f"{name}: {error}") from error
    except Pil.DecompressionBombError as error:
        most = MAX_PIXELS // 10**6
        told = f"{name}: more than the {most} million pixels that are decoded"
        raise PictureTooLarge(told) from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise BadPicture(
            f"{name}: it is damaged or cut off ({error}); give another copy of it"
        ) from error


def _unknown(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "HEIC is not read; export it as JPEG or PNG"
    if b"<svg" in data[:1000].lower():
        return "SVG holds no pixels; export it as PNG"
    if data[:5] == b"%PDF-":
        return "it is a PDF; export the page as PNG"
    return f"it is no picture, or of an unknown kind; {READABLE}"
