"""Bytes to a picture, with bounds on everything: what people upload is not trusted.

Pillow decodes, in an encoder process and never in one that holds state: whatever a decoder does wrong ends that
process alone.

A whole picture of 50 million pixels takes 200 MB. So one at a time is decoded in a process, whatever its lanes; it is
put on white a strip at a time; and what is much larger than any model sees is made smaller on the way, by means over
squares, so that nothing after it is large.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from io import BytesIO
from math import ceil, sqrt

from PIL import ExifTags, Image, UnidentifiedImageError

from workers.picture_requests import MAX_RATIO, Reason, Unusable

__all__ = ["decode_picture"]

_SHORT_SIDE = 1_024
"""Pixels, at least, of the short side of a picture that was made smaller: twice what the largest of the models see, so
that their own resizing has what it needs."""
_MOST_PIXELS = 16_000_000
"""Of a picture that is given out, whatever its sides: of a strip, which no model sees sharply."""
_STRIP_PIXELS = 1_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

# The bound is ours, checked before any pixel is decoded; Pillow's own warns first and depends on a global.
Image.MAX_IMAGE_PIXELS = None

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By orientation, as the tag of EXIF 2.3 (section 4.6.4) says."""

_one_at_a_time = threading.Lock()


def decode_picture(content: bytes, *, max_pixels: int) -> Image.Image:
    """The picture as people see it: RGB, turned as its EXIF orientation says, on white where it is transparent; the
    first frame of a moving one. One whose short side has 2,048 pixels or more, or that has more than 16 million pixels,
    is made smaller.

    One is decoded at a time; other threads wait.

    Args:
        content: a JPEG, PNG, WebP or GIF file.
        max_pixels: width times height, at most.

    Raises:
        Unusable: when it is none, is damaged or cut off, or is larger than allowed.
    """
    # Pillow's WebP reader takes memory for the whole picture when it opens it, before anybody can look at the size.
    _check_size(_webp_size(content), max_pixels)
    with _one_at_a_time:
        return _decode(content, max_pixels)


def _decode(content: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Unusable(Reason.FORMAT) from None
    except Exception as error:  # decoders raise whatever comes to pass: struct.error, SyntaxError, EOFError
        raise Unusable(Reason.DAMAGED) from error
    _check_size(image.size, max_pixels)
    try:
        # A JPEG is decoded at half, a quarter or an eighth of its size, where that is enough; others are decoded whole.
        width, height = image.size
        factor = _factor(image.size)
        image.draft(None, (ceil(width / factor), ceil(height / factor)))
        image.load()
        orientation = _orientation(image)
        small = _small_on_white(image)
        return small if orientation is None else small.transpose(orientation)
    except MemoryError:
        raise
    except Exception as error:
        raise Unusable(Reason.DAMAGED) from error


def _factor(size: tuple[int, int]) -> int:
    """By how much a picture is made smaller, in both directions."""
    width, height = size
    return max(1, min(size) // _SHORT_SIDE, ceil(sqrt(width * height / _MOST_PIXELS)))


def _small_on_white(image: Image.Image) -> Image.Image:
    width, height = image.size
    factor = _factor(image.size)
    small = Image.new("RGB", (ceil(width / factor), ceil(height / factor)))
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    for top in range(0, height, rows):
        strip = _on_white(image.crop((0, top, width, min(top + rows, height))))
        small.paste(strip.reduce(factor), (0, top // factor))
    return small


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


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """What turns the picture upright; None: it is."""
    with suppress(Exception):  # a picture with odd EXIF data is still a picture
        return _TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    return None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255 instead of scaling them
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    shown = image.convert("RGBA")
    ground = Image.new("RGBA", shown.size, "white")
    ground.alpha_composite(shown)
    return ground.convert("RGB")
