"""The server's certificate, which may change while it serves."""

from __future__ import annotations

import ssl
from pathlib import Path

from istio_init.core.errors import InvalidInput


class ServerCertificate:
    """A certificate with its key, read from files, and read again when they change.

    A listener keeps one TLS context for its whole life, so each handshake is sent on to the context of the day: its
    certificate and key are loaded together or not at all, and connections that are open keep what they began with.

    Args:
        certificate: a file, PEM, the server's own certificate first.
        key: a file, PEM, without a password.

    Raises:
        InvalidInput: they cannot be read, or do not belong together.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self.files = (certificate, key)
        self._contents = self._read()
        self._current = self._load()
        self.listening = self._load()
        self.listening.sni_callback = self._choose

    @property
    def directories(self) -> set[str]:
        """Name where a change can come from."""
        return {str(Path(file).absolute().parent) for file in self.files}

    def reload(self) -> bool:
        """Take what is in the files now; False where they have not changed.

        Raises:
            InvalidInput: as the class does; the former certificate stays in use.
        """
        contents = self._read()
        if contents == self._contents:
            return False
        self._current = self._load()
        self._contents = contents
        return True

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:  # noqa: ARG002 - ssl's signature
        """Go on with the present certificate; OpenSSL asks in every handshake, also of a client that names no server."""
        connection.context = self._current

    def _read(self) -> tuple[bytes, ...]:
        try:
            return tuple(Path(file).read_bytes() for file in self.files)
        except OSError as error:
            raise self._refusal(f"{error.filename}: {error.strerror}") from None

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # A key with a password must not make OpenSSL ask for it at a terminal.
            context.load_cert_chain(*self.files, password=lambda: "")
        except OSError as error:  # of which SSLError is one
            raise self._refusal(f"{' and '.join(self.files)}: {error}") from None
        return context

    def _refusal(self, problem: str) -> InvalidInput:
        return InvalidInput("--tls-cert, --tls-key", problem, "a certificate and its key, PEM, without a password")
