"""What people upload: addresses of images, ``data:`` URIs, and the pictures themselves."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from urllib.parse import quote_from_bytes

from stream_app.images.sources import ImageSource
from tests.fuzz.mutate import Form
from tests.fuzz.target import Sample, Target, never
from tests.image_checkpoints import picture
from workers.picture_requests import MOST_CHARS, Unusable, ask_for_data, read_picture
from workers.pictures import decode_picture

__all__ = ["targets"]

_MOST_PIXELS = 100_000
_MOST_BYTES = 20_000
_URL_CHARS = 4_096
"""As many as an item's ``image_url`` may have."""
_PREFIX = "https://shop.example/images/"
_SECRET = b"not below the folder"


def targets(folder: Path) -> list[Target]:
    """Pictures, the requests for them, and the addresses they are found by; ``folder`` is for files."""
    files = [
        picture(size=(24, 16)),
        picture(size=(24, 16), mode="RGBA"),
        picture(size=(24, 16), mode="P"),
        picture(size=(24, 16), mode="I;16"),
        picture(size=(24, 16), kind="JPEG", quality=80),
        picture(size=(24, 16), kind="JPEG", exif=_turned()),
        picture(size=(24, 16), kind="JPEG", mode="CMYK", progressive=True),
        picture(size=(24, 16), kind="WEBP", lossless=True),
        picture(size=(24, 16), kind="WEBP", mode="RGBA", quality=50),
        picture(size=(24, 16), kind="GIF"),
    ]
    uris = [f"data:image/png;base64,{b64encode(one).decode()}" for one in files]
    uris += [f"data:,{quote_from_bytes(files[0])}", "data:image/gif," + quote_from_bytes(files[-1])]
    names = _folder(folder, files)
    urls = [*uris, *names, *(_PREFIX + name for name in names), f"{_PREFIX}a%2epng?w=100#top"]
    return [
        Target("pictures", [Sample(one) for one in files], _picture, (Unusable,), None, share=0.5),
        Target("pictures: data", [Sample(one.encode()) for one in uris], _data, (Unusable,), _TEXT, share=0.5),
        Target("pictures: image_url", [Sample(one.encode()) for one in urls], _found(folder), (Unusable,), _TEXT),
    ]


def _turned() -> bytes:
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif.tobytes()


def _folder(folder: Path, files: list[bytes]) -> list[str]:
    """Pictures in a folder beside something that is none of our business; their names."""
    images = folder / "images"
    (images / "deep").mkdir(parents=True, exist_ok=True)
    (images / "a.png").write_bytes(files[0])
    (images / "deep" / "b c.jpg").write_bytes(files[4])
    (folder / "secret").write_bytes(_SECRET)
    link = images / "out.png"
    if not link.is_symlink():
        link.symlink_to(folder / "secret")
    return ["a.png", "deep/b c.jpg", "deep/../a.png"]


def _picture(sample: Sample) -> object:
    image = decode_picture(sample.value or b"", max_pixels=_MOST_PIXELS)
    width, height = image.size
    return (image.mode == "RGB" and 0 < width * height <= _MOST_PIXELS) or never("a picture beyond its bounds")


def _data(sample: Sample) -> object:
    uri = (sample.value or b"").decode("utf-8", "replace")
    content = read_picture(ask_for_data(uri), None, max_bytes=_MOST_BYTES)
    if len(content) > _MOST_BYTES:
        never("a picture of more bytes than are allowed")
    return _picture(Sample(content))


def _found(folder: Path) -> object:
    source = ImageSource(folder / "images", _PREFIX, max_bytes=_MOST_BYTES)

    def found(sample: Sample) -> object:
        url = (sample.value or b"").decode("utf-8", "replace")[:_URL_CHARS]
        request = source.request(url)
        if len(request) > MOST_CHARS:
            never("a request that would be cut")
        request.encode()  # as it goes to the process
        content = read_picture(request, source.folder, max_bytes=_MOST_BYTES)
        return content != _SECRET or never("a file from outside the folder")

    return found


def _as_text(data: bytes) -> list[str]:
    return [data.decode()]


def _from_text(document: object) -> bytes:
    if not (isinstance(document, list) and document and isinstance(document[0], str)):
        raise TypeError("no text any more")
    return document[0].encode()


_TEXT: Form = (_as_text, _from_text)
