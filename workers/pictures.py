"""Bytes to a picture, with bounds on everything: what people upload is not trusted.

Pillow decodes, in an encoder process and never in one that holds state: whatever a decoder does wrong ends that
process alone.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from workers.picture_requests import MAX_RATIO, Reason, Unusable

__all__ = ["decode_picture"]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

# The bound is ours, checked before any pixel is decoded; Pillow's own warns first and depends on a global.
Image.MAX_IMAGE_PIXELS = None


def decode_picture(content: bytes, *, max_pixels: int) -> Image.Image:
    """The picture as people see it: RGB, turned as its EXIF orientation says, on white where it is transparent; the
    first frame of a moving one.

    Args:
        content: a JPEG, PNG, WebP or GIF file.
        max_pixels: width times height, at most.

    Raises:
        Unusable: when it is none, is damaged or cut off, or is larger than allowed.
    """
    # Pillow's WebP reader takes memory for the whole picture when it opens it, before anybody can look at the size.
    _check_size(_webp_size(content), max_pixels)
    try:
        image = Image.open(BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Unusable(Reason.FORMAT) from None
    except Exception as error:  # decoders raise whatever comes to pass: struct.error, SyntaxError, EOFError
        raise Unusable(Reason.DAMAGED) from error
    _check_size(image.size, max_pixels)
    try:
        image.load()
        return _on_white(_upright(image))
    except MemoryError:
        raise
    except Exception as error:
        raise Unusable(Reason.DAMAGED) from error


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is None:
        return
    width, height = size
    if width < 1 or height < 1:
        raise Unusable(Reason.DAMAGED)
    if width * height > max_pixels:
        raise Unusable(Reason.TOO_MANY_PIXELS)
    if max(size) > MAX_RATIO * min(size):
        raise Unusable(Reason.STRIP)


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height as a WebP file's first chunk says (RFC 9649, section 2); None for anything else."""
    head = content[:30]
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # a picture with odd EXIF data is still a picture
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255 instead of scaling them
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    shown = image.convert("RGBA")
    ground = Image.new("RGBA", shown.size, "white")
    ground.alpha_composite(shown)
    return ground.convert("RGB")
