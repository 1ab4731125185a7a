"""An opened picture of any kind of pixels -> upright 8-bit sRGB. Knows no files and no limits."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from PIL import ImageCms

ORIENTATION = 0x0112  # EXIF
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}  # mode -> a profile's own name


def upright_rgb(picture: Image.Image) -> np.ndarray:
    """Pixels (height, width, 3) uint8: upright, over white where transparent, 16 bits rounded to 8.

    A colour profile is applied unless it is sRGB already, is broken or belongs to another kind of
    pixels: then it is ignored, as browsers do. Raises ValueError for pixels that are no colours
    (NaN, negative, beyond their range), and whatever PIL raises for damaged data.
    """
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        return from_array(np.asarray(picture))
    profile = picture.info.get("icc_profile")
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
    return np.asarray(picture)


def from_array(array: np.ndarray) -> np.ndarray:
    """Grey (h, w) or (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4) numbers -> (h, w, 3) uint8.

    uint8; uint16 over its whole range; floats in 0 to 1; bool. Wider integers must lie in the range
    of uint16. Raises ValueError for other shapes, kinds and values.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"its shape is {array.shape}; it must be (height, width), or (height, width, 3) for RGB"
        )
    if 0 in array.shape:
        raise ValueError("it has no pixels")
    pixels = _eight_bits(array)
    if pixels.shape[2] == 4:
        solid = pixels[:, :, 3:].astype(np.uint16)
        over = pixels[:, :, :3] * solid + 255 * (255 - solid)
        pixels = ((over + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise ValueError(f"its numbers reach from {low} to {high}; they must lie in 0 to 1")
        return (array * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.uint16) and not np.issubdtype(array.dtype, np.int32):
        raise ValueError(f"it holds {array.dtype}; it must hold uint8, uint16, bool or floats")
    if low < 0 or high > 65_535:
        raise ValueError(f"its numbers reach from {low} to {high}; they must lie in 0 to 65535")
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
