"""A picture of any kind of pixels -> 8-bit sRGB, upright. Knows no files and no limits."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageCms

ORIENTATION = 0x0112  # EXIF
TURNS = {  # orientation: what sets a stored picture upright; from 5 on it swaps the sides
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}  # mode -> a profile's own name


class NotColours(ValueError):
    """Numbers that are no colours; the message goes on from the name of what holds them."""


def orientation(picture: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where there is none. A PNG is decoded for it: it may stand at the end."""
    found = picture.getexif().get(ORIENTATION, 1)
    return found if found in TURNS else 1


def late_profile(picture: Image.Image) -> bytes | None:
    """The colour profile that can wait until a picture is resized, which is far cheaper then."""
    if picture.mode != "RGB" or picture.has_transparency_data:
        return None
    return picture.info.get("icc_profile")


def eight_bit(picture: Image.Image, late: bytes | None) -> np.ndarray:
    """(height, width, 3) uint8 as stored: over white where transparent, 16 bits rounded to 8.

    In sRGB, unless there is a `late` profile that `finish` applies. Raises NotColours for numbers
    that are none (NaN, negative, beyond their range), and whatever Pillow raises for damaged data.
    """
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        return from_array(np.asarray(picture))
    profile = None if late else picture.info.get("icc_profile")
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        picture = picture.convert("RGB")
    elif picture.mode not in SPACES:
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    picture = _in_srgb(picture, profile)
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)
    return np.array(picture)


def finish(pixels: np.ndarray, orientation: int, profile: bytes | None) -> np.ndarray:
    """Stored pixels (height, width, 3) set upright, and brought from `profile` to sRGB.

    A profile that is broken or belongs to another kind of pixels is ignored, as browsers do.
    """
    turn = TURNS[orientation]
    if turn is None and profile is None:
        return pixels
    picture = Image.fromarray(pixels)
    if turn is not None:
        picture = picture.transpose(turn)
    return np.array(_in_srgb(picture, profile))


def from_array(array: np.ndarray) -> np.ndarray:
    """Grey (h, w) or (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4) numbers -> (h, w, 3) uint8.

    uint8; uint16 over its whole range; floats in 0 to 1; bool. Wider integers must lie in the range
    of uint16. Raises NotColours for other shapes, kinds and values.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise NotColours(
            f"its shape is {array.shape}; it must be (height, width), or (height, width, 3) for RGB"
        )
    if 0 in array.shape:
        raise NotColours("it has no pixels")
    pixels = _eight_bits(array)
    if pixels.shape[2] == 4:
        solid = pixels[:, :, 3:].astype(np.uint16)
        over = pixels[:, :, :3] * solid + 255 * (255 - solid)
        pixels = ((over + 127) // 255).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy()


def _eight_bits(array: np.ndarray) -> np.ndarray:
    kind = array.dtype
    if kind == np.uint8:
        return array
    if kind == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    floats = np.issubdtype(kind, np.floating)
    if not (floats or np.issubdtype(kind, np.uint16) or np.issubdtype(kind, np.int32)):
        raise NotColours(f"it holds {kind}; it must hold uint8, uint16, bool or floats")
    low, high, most = array.min(), array.max(), 1 if floats else 65_535
    if not (low >= 0 and high <= most):  # also where one is NaN
        raise NotColours(f"its numbers reach from {low} to {high}; they must lie in 0 to {most}")
    if floats:
        return (array * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and (converted := _converted(picture, profile)):
        return converted
    if picture.mode == "LAB":
        from PIL import ImageCms

        return _transformed(picture, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _converted(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """In sRGB; None where there is nothing to convert, or the profile is of no use."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        described: Any = opened.profile
        if described.xcolor_space != SPACES[picture.mode]:
            return None
        if "sRGB" in (described.profile_description or ""):
            return None
        return _transformed(picture, opened)
    except (ImageCms.PyCMSError, OSError):
        return None


def _transformed(picture: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    from PIL import ImageCms

    done = ImageCms.profileToProfile(
        picture,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
    )
    assert done is not None  # only in place
    return done
