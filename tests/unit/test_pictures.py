"""Bytes to a picture: as people see it, within bounds, and nothing that comes in raises anything else."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.image_checkpoints import picture
from workers.picture_requests import MAX_RATIO, Reason, Unusable
from workers.pictures import decode_picture

LIMIT = 100_000


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode_picture(content, max_pixels=LIMIT))


def why(content: bytes, *, max_pixels: int = LIMIT) -> Reason:
    with pytest.raises(Unusable) as caught:
        decode_picture(content, max_pixels=max_pixels)
    return caught.value.reason


def png_that_says(width: int, height: int) -> bytes:
    """A PNG whose head says so, and which ends where the pixels begin."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\xff\xff\0\0IDAT"
    )


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_formats_without_loss_give_the_same_pixels(kind: str) -> None:
    np.testing.assert_array_equal(pixels(picture(seed=1, kind=kind)), pixels(picture(seed=1)))


def test_webp_without_loss_gives_the_same_pixels() -> None:
    np.testing.assert_array_equal(pixels(picture(seed=1, kind="WEBP", lossless=True)), pixels(picture(seed=1)))


def test_jpeg_gives_nearly_the_same_pixels() -> None:
    assert np.abs(pixels(picture(color="teal", kind="JPEG")).astype(int) - pixels(picture(color="teal"))).max() < 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(mode: str) -> None:
    assert pixels(picture(mode=mode)).shape == (40, 48, 3)


def test_sixteen_bits_of_grey_are_scaled_not_cut_off() -> None:
    image, out = Image.new("I;16", (4, 4), 128 * 257), BytesIO()
    image.putpixel((0, 0), 65_535)
    image.save(out, "PNG")
    assert Image.open(BytesIO(out.getvalue())).mode.startswith("I")
    found = pixels(out.getvalue())
    assert tuple(found[0, 0]) == (255, 255, 255)
    assert (found[1:] == 128).all()


def test_jpeg_in_cmyk_becomes_rgb() -> None:
    assert pixels(picture(mode="CMYK", kind="JPEG")).shape == (40, 48, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation: int) -> None:
    upright = Image.open(BytesIO(picture(seed=3, size=(60, 40)))).convert("RGB")
    # What a camera stores that was held so: the inverse of what the orientation asks for.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(inverse[orientation])
    exif, out = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    stored.save(out, "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(out.getvalue()), np.asarray(upright))


def test_odd_exif_data_does_not_cost_the_picture() -> None:
    out = BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert (pixels(out.getvalue()) == (255, 0, 0)).all()


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 200, 255))
    out = BytesIO()
    image.save(out, "PNG")
    found = pixels(out.getvalue())
    assert tuple(found[0, 0]) == (0, 0, 200)
    assert (found[1:] == 255).all()


def test_of_a_moving_picture_the_first_frame_counts() -> None:
    frames, out = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(out.getvalue()) == (255, 0, 0)).all()


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image, out = Image.new("P", (8, 8), 1), BytesIO()
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(out, "PNG", transparency=1)
    found = pixels(out.getvalue())
    assert tuple(found[0, 0]) == (0, 0, 0)
    assert (found[1:] == 255).all()


# --- large ones ------------------------------------------------------------------------------------------------------

LARGE = 20_000_000


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2_047, 2_047), (2_047, 2_047)),
        ((2_048, 2_048), (1_024, 1_024)),
        ((2_100, 3_001), (1_050, 1_501)),
        ((17_000, 1_000), (8_500, 500)),
    ],
)
def test_what_is_much_larger_than_models_see_is_made_smaller(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert decode_picture(picture(color="teal", size=size), max_pixels=LARGE).size == expected


def test_a_large_picture_is_the_mean_of_its_squares_on_white_upright() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (1_024, 1_100, 4), dtype=np.uint8)
    exif, out = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    Image.fromarray(small.repeat(2, axis=0).repeat(2, axis=1)).save(out, "PNG", exif=exif, compress_level=1)
    found = np.asarray(decode_picture(out.getvalue(), max_pixels=LARGE)).astype(float)
    alpha = small[..., 3:] / 255.0
    expected = np.rot90(small[..., :3] * alpha + 255.0 * (1.0 - alpha), -1)
    assert found.shape == (1_100, 1_024, 3)
    assert np.abs(found - expected).max() <= 1.0


def test_a_large_jpeg_looks_the_same() -> None:
    gradient, out = Image.linear_gradient("L").resize((4_200, 4_200)).convert("RGB"), BytesIO()
    gradient.save(out, "JPEG")
    found = decode_picture(out.getvalue(), max_pixels=LARGE)
    assert found.size == (1_050, 1_050)
    expected = np.asarray(gradient.reduce(4)).astype(int)
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak of memory that Linux tells")
def test_a_transparent_picture_takes_little_more_than_itself(tmp_path: Path) -> None:
    """Four bytes of each pixel are the picture itself; copies of it would make twelve and more."""
    side = 3_400
    (tmp_path / "small.png").write_bytes(picture(mode="RGBA"))
    (tmp_path / "large.png").write_bytes(picture(color="teal", size=(side, side), mode="RGBA"))
    code = f"""
from pathlib import Path
from workers.pictures import decode_picture
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
decode_picture(Path("small.png").read_bytes(), max_pixels={LARGE})  # Pillow loads its readers
content, before = Path("large.png").read_bytes(), peak()
decode_picture(content, max_pixels={LARGE})
print((peak() - before) / {side**2})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert 3.5 < float(done.stdout) < 8.0


def test_one_picture_is_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that were in a decoder together would meet at the barrier."""
    met, barrier, opened = [], threading.Barrier(2), Image.open

    def slowly(*given: Any, **named: Any) -> Image.Image:
        with suppress(threading.BrokenBarrierError):
            met.append(barrier.wait(timeout=0.2))
        return opened(*given, **named)

    monkeypatch.setattr(Image, "open", slowly)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(pixels, [picture(seed=1), picture(seed=2)]))
    assert met == []
    assert [one.shape for one in found] == [(40, 48, 3)] * 2


# --- what is none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"not a picture", b"<svg/>", b"%PDF-1.7", b"RIFF....WEBP", bytes(1_000)])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    assert why(content) in (Reason.FORMAT, Reason.DAMAGED)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "ICNS", "PCX"])
def test_formats_that_are_not_listed_are_refused(kind: str) -> None:
    assert why(picture(kind=kind, size=(64, 64))) is Reason.FORMAT


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_that_is_cut_off_is_refused(kind: str) -> None:
    content = picture(seed=5, size=(200, 160), kind=kind)
    assert why(content[: len(content) // 2]) in (Reason.DAMAGED, Reason.FORMAT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_more_pixels_than_allowed_are_refused(kind: str) -> None:
    content = picture(size=(50, 40), kind=kind)
    assert why(content, max_pixels=1_999) is Reason.TOO_MANY_PIXELS
    assert decode_picture(content, max_pixels=2_000).size == (50, 40)


@pytest.mark.parametrize("lossless", [True, False])
def test_the_size_of_a_webp_is_found_before_pillow_opens_it(monkeypatch: pytest.MonkeyPatch, lossless: bool) -> None:
    content = picture(size=(400, 300), kind="WEBP", lossless=lossless)
    alpha = picture(size=(400, 300), kind="WEBP", lossless=lossless, mode="RGBA", exif=Image.Exif().tobytes())
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert why(content) is Reason.TOO_MANY_PIXELS
    assert why(alpha) is Reason.TOO_MANY_PIXELS


def test_a_bomb_is_refused_by_its_head() -> None:
    """40,000 by 40,000 pixels in 41 bytes: nothing of that is ever allocated, and Pillow's own limit is not needed."""
    assert why(png_that_says(40_000, 40_000), max_pixels=50_000_000) is Reason.TOO_MANY_PIXELS


def test_a_strip_is_refused() -> None:
    assert why(picture(size=(MAX_RATIO * 4 + 1, 4))) is Reason.STRIP
    assert why(picture(size=(4, MAX_RATIO * 4 + 1))) is Reason.STRIP
    assert decode_picture(picture(size=(MAX_RATIO * 4, 4)), max_pixels=LIMIT).size == (MAX_RATIO * 4, 4)


def test_a_picture_without_pixels_is_refused() -> None:
    assert why(png_that_says(0, 10)) in (Reason.FORMAT, Reason.DAMAGED)


@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]),
    places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=12),
    cut=st.integers(0, 400),
)
def test_whatever_is_wrong_in_a_file_it_is_a_picture_or_unusable(
    kind: str, places: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(picture(seed=9, kind=kind))
    for place, value in places:
        content[place % len(content)] = value
    try:
        image = decode_picture(bytes(content[: len(content) - cut % len(content)]), max_pixels=LIMIT)
    except Unusable:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= LIMIT
