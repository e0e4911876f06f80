"""Where an item's image is: below one folder, or in the item itself. Nothing is fetched from a network.

An address that an event carries would be opened by our machines, inside our network: whoever may publish an item could
reach what only we can (server-side request forgery, OWASP A10:2021). And a slow host would hold up the catalogue. So
images are fetched by somebody else, before, into a folder; ``encoder.image_url_prefix`` says which addresses are files
there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from workers.picture_requests import Reason, Unusable, ask_for_data, ask_for_file, digest_of, read_bounded

__all__ = ["ImageSource"]

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//")
_SUFFIX = re.compile(r"[?#]")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Finds images. Reads files: not for the event loop.

    Attributes:
        folder: that files are below; None: only images in items themselves are found.
        url_prefix: addresses that begin so name files of the folder by what follows; empty: none do.
        max_bytes: of a file, at most.
    """

    folder: Path | None
    url_prefix: str = ""
    max_bytes: int = 10_000_000

    def request(self, image_url: str) -> str:
        """What the image model is to be asked (:mod:`workers.picture_requests`) for the image at ``image_url``: a path
        below the folder, an address that begins with the prefix, or a ``data:`` URI.

        The file is read, for what is asked holds its digest: a file that changes is another image.

        Raises:
            Unusable: when it is elsewhere, leads out of the folder (by ``..``, by a link, or as an absolute path), is
                not there, is no regular file, or is too large.
        """
        if image_url[:5].lower() == "data:":
            return ask_for_data(image_url)
        name = image_url
        if self.url_prefix and image_url.startswith(self.url_prefix):
            # What follows ? or # is for the host that serves it: a size, a version. The rest is the name of a file, not
            # an address to be parsed: `http://[x` there is a file that is missing.
            name = unquote(_SUFFIX.split(image_url[len(self.url_prefix) :], maxsplit=1)[0].lstrip("/"))
        elif _SCHEME.match(image_url):
            raise Unusable(Reason.ELSEWHERE)
        if self.folder is None or "\0" in name or "\n" in name:
            raise Unusable(Reason.MISSING)
        root = self.folder.resolve()
        try:
            path = (root / name).resolve()
        except (OSError, RuntimeError, ValueError):  # a name too long, links in a circle
            raise Unusable(Reason.MISSING) from None
        if not path.is_relative_to(root):
            raise Unusable(Reason.OUTSIDE)
        return ask_for_file(str(path.relative_to(root)), digest_of(read_bounded(path, max_bytes=self.max_bytes)))
