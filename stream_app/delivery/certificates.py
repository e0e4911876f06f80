"""TLS to a broker with certificates from files, which may be replaced while we run."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from stream_app.errors import SettingsError
from stream_app.logs import get_logger
from stream_app.secret_files import read_file

__all__ = ["Certificates"]

_log = get_logger(__name__)


class Certificates:
    """An SSL context made of files, and made again when they have changed.

    A new one each time: adding to a context would keep certificate authorities that are not trusted any more.
    Connections that stand keep what they were made with. Safe for use from several threads.

    Args:
        ca_file: certificate authorities (PEM) that may vouch for the other side; None: the system's.
        certificate_file: our own certificate and its chain (PEM); None: we show none.
        key_file: its private key (PEM).
        key_password: of an encrypted key, asked for when the key is loaded; None: it is not encrypted.
        prefix: of the settings' names, for what is said about them.

    Raises:
        SettingsError: when a file cannot be read or is not what it should be; names the setting.
    """

    def __init__(
        self,
        *,
        ca_file: Path | None,
        certificate_file: Path | None = None,
        key_file: Path | None = None,
        key_password: Callable[[], str] | None = None,
        prefix: str = "connection.",
    ) -> None:
        named = {"ca_file": ca_file, "certificate_file": certificate_file, "key_file": key_file}
        self._files = {f"{prefix}{name}": path for name, path in named.items() if path is not None}
        self._ca_file, self._certificate_file, self._key_file = ca_file, certificate_file, key_file
        self._key_password = key_password
        self._prefix = prefix
        self._lock = Lock()
        self._digest = self._read()
        self._context = self._made()

    def current(self) -> ssl.SSLContext:
        """The context for a new connection. With a warning the last one that could be made, while a certificate and
        its key do not fit together: one may be replaced a moment before the other."""
        with self._lock:
            try:
                # Read before they are loaded: what is replaced in between is loaded again the next time.
                digest = self._read()
                if digest != self._digest:
                    self._context = self._made()
                    self._digest = digest
                    _log.info("certificates loaded again", files=[str(path) for path in self._files.values()])
            except SettingsError as error:
                _log.warning("certificates not loaded, the last ones are used", error=str(error))
            return self._context

    def _read(self) -> bytes:
        digest = hashlib.sha256()
        for setting, path in self._files.items():
            digest.update(hashlib.sha256(read_file(setting, path)).digest())
        return digest.digest()

    def _made(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=None if self._ca_file is None else str(self._ca_file))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"{self._prefix}ca_file = {self._ca_file}: cannot be read as PEM certificates: {error}"
            ) from error
        if self._certificate_file is not None:
            try:
                context.load_cert_chain(self._certificate_file, self._key_file, password=self._password)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(
                    f"{self._prefix}certificate_file = {self._certificate_file} and {self._prefix}key_file = "
                    f"{self._key_file}: are no PEM certificate with its private key (or its password is another): "
                    f"{error}"
                ) from error
        return context

    def _password(self) -> str:
        # Without this, OpenSSL would ask at the terminal and wait.
        if self._key_password is None:
            raise SettingsError(
                f"{self._prefix}key_file = {self._key_file}: is encrypted; set {self._prefix}key_password_file"
            )
        return self._key_password()

    def __repr__(self) -> str:
        return f"Certificates({', '.join(f'{name}={path}' for name, path in self._files.items())})"
