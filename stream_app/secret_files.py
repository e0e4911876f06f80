"""Secrets in files that somebody else renews: read whenever they are needed, never shown.

Operators of platforms mount secrets as files and replace them while processes run. A file that cannot be read for a
moment (it is being replaced) does not end a process that knows the secret it held.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from stream_app.errors import SettingsError
from stream_app.logs import get_logger

__all__ = ["SecretFile", "read_file"]

_log = get_logger(__name__)
_MOST_BYTES = 1_048_576
"""Larger is no password, token or bundle of certificates: most likely the wrong file."""


class SecretFile:
    """One secret in a file.

    Safe for use from several threads. Reading is short and done where it is asked for.

    Args:
        setting: dotted name of the setting, for what is said about it.
        path: the file; a line end at its end does not belong to the secret.

    Raises:
        SettingsError: when the file cannot be read, or holds nothing.
    """

    def __init__(self, setting: str, path: Path) -> None:
        self._setting = setting
        self._path = path
        self._last = SecretStr(self._read())

    def current(self) -> str:
        """What the file holds now; what it held last, with a warning, when it cannot be read now."""
        try:
            self._last = SecretStr(self._read())
        except SettingsError as error:
            _log.warning("secret file not read, the last content is used", setting=self._setting, error=str(error))
        return self._last.get_secret_value()

    def _read(self) -> str:
        try:
            secret = read_file(self._setting, self._path).decode().rstrip("\r\n")
        except UnicodeDecodeError:  # its message holds the bytes
            raise SettingsError(f"{self._setting} = {self._path}: is not UTF-8 text") from None
        if not secret:
            raise SettingsError(f"{self._setting} = {self._path}: the file is empty")
        return secret

    def __repr__(self) -> str:
        return f"SecretFile({self._setting!r}, {str(self._path)!r})"


def read_file(setting: str, path: Path) -> bytes:
    """The content of a file that a setting names.

    Raises:
        SettingsError: when it cannot be read, or is too large for what it should be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{setting} = {path}: cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"{setting} = {path}: has more than {_MOST_BYTES} bytes; is it the right file?")
    return content
