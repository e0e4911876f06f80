"""Who we are to Redis: names, passwords and certificates, as the files hold them when a connection is made.

A rotated secret is taken up by the next connection; one that is open stays open, as Redis has it. redis-py asks a
``CredentialProvider`` at every connection, and the connections of ``redis_client`` ask :class:`Certificates`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from stream_app.errors import SettingsError
from stream_app.logs import get_logger

__all__ = ["Certificates", "Credentials"]

_log = get_logger(__name__)
_MOST_BYTES = 65_536
"""What is longer is no password."""


class Credentials(CredentialProvider):
    """The name and password for each new connection.

    Args:
        username, password: what is not in a file.
        username_file, password_file: read at every connection; white space around what they hold is not part of it.
        group: settings that name the files begin so, for complaints.

    Attributes:
        connections: how many connections were begun. A new one may lead to another server than the one before.
    """

    def __init__(
        self,
        *,
        username: str | None = None,
        password: str | None = None,
        username_file: Path | None = None,
        password_file: Path | None = None,
        group: str = "redis_connection.",
    ) -> None:
        self._username = username
        self._password = password
        self._files = {"username": username_file, "password": password_file}
        self._group = group
        self.connections = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"  # never what it holds

    def check(self) -> None:
        """Read the files once.

        Raises:
            SettingsError: when one cannot be read, or is empty; names the setting and the file.
        """
        try:
            self._read()
        except AuthenticationError as error:
            raise SettingsError(str(error)) from error

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What AUTH is sent with; nothing where there is no password.

        Raises:
            AuthenticationError: when a file cannot be read just now: it passes, as a Redis that is away does.
        """
        self.connections += 1
        return self._read()

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same: the files are small, and read at new connections only."""
        return self.get_credentials()

    def _read(self) -> tuple[str] | tuple[str, str]:
        username = self._from_file("username") or self._username
        password = self._from_file("password") or self._password
        if password is None:
            return ()  # type: ignore[return-value]  # redis-py then sends no AUTH
        return (password,) if username is None else (username, password)

    def _from_file(self, which: str) -> str | None:
        path = self._files[which]
        if path is None:
            return None
        setting = f"{self._group}{which}_file = {path}"
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
            value = text.decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            # Without the cause: what cannot be decoded is in it.
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise AuthenticationError(f"{setting}: cannot be read: {why}") from None
        if not value or len(text) > _MOST_BYTES:
            raise AuthenticationError(f"{setting}: {'is empty' if not value else 'is too long for a ' + which}")
        return value


class Certificates:
    """The TLS side of each new connection.

    Args:
        ca_file: authorities (PEM); None: those of the system.
        certificate_file, key_file: ours, for mutual TLS (PEM); without ``key_file`` the key is in the first.
        verify_hostname: whether the server's certificate must be of the host connected to.
    """

    def __init__(
        self,
        *,
        ca_file: Path | None = None,
        certificate_file: Path | None = None,
        key_file: Path | None = None,
        verify_hostname: bool = True,
    ) -> None:
        self._ca_file, self._certificate_file, self._key_file = ca_file, certificate_file, key_file
        self._verify_hostname = verify_hostname
        self._read: tuple[object, ...] | None = None
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The context of the files as they are; the one before while they are being replaced and do not fit.

        Raises:
            SettingsError: when they were never read and cannot be; names the setting, the file and why.
        """
        files = tuple(map(_stamp, (self._ca_file, self._certificate_file, self._key_file)))
        if self._context is not None and files == self._read:
            return self._context
        try:
            context = self._load()
        except SettingsError as error:
            if self._context is None:
                raise
            _log.warning("certificates not read again", error=str(error), effect="those read before are used")
            return self._context
        self._read, self._context = files, context
        return context

    def _load(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=None if self._ca_file is None else str(self._ca_file))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"redis_connection.ca_file = {self._ca_file}: cannot be read as PEM certificates: {error}"
            ) from error
        context.check_hostname = self._verify_hostname
        if self._certificate_file is not None:
            key = None if self._key_file is None else str(self._key_file)
            try:
                # Without a password of an encrypted key, OpenSSL would ask for it on the terminal.
                context.load_cert_chain(str(self._certificate_file), key, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise SettingsError(
                    f"redis_connection.certificate_file = {self._certificate_file}, key_file = {self._key_file}: "
                    f"cannot be read as a PEM certificate and its key: {error}"
                ) from error
        return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give it without a password, readable for this process alone")


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Differs when the file does; a mounted secret is replaced by switching a link, so the inode counts as well."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
