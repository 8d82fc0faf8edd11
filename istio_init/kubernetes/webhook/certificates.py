"""The server's certificate, reloaded without a restart."""

from __future__ import annotations

import ssl
from pathlib import Path

from istio_init.core.errors import InvalidInput
from istio_init.core.reading import read_file

WHERE = "--tls-cert, --tls-key"


class ServerCertificate:
    """A certificate and its key, read from files and reloaded when these change.

    A listener keeps a single TLS context, so its SNI callback switches each handshake to the current context. Certificate
    and key are thereby replaced together or not at all, and established connections are unaffected.

    Args:
        certificate: a PEM file, the server's own certificate first.
        key: a PEM file, unencrypted.

    Raises:
        InvalidInput: the files cannot be read, or do not match.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self.files = (certificate, key)
        self._contents = self._read()
        self._current = self._load()
        self.listening = self._load()
        self.listening.sni_callback = self._choose

    @property
    def directories(self) -> set[str]:
        """The directories to watch for changes."""
        return {str(Path(file).absolute().parent) for file in self.files}

    def reload(self) -> bool:
        """Load the current files; False if they have not changed.

        Raises:
            InvalidInput: see the class; the previous certificate stays in use.
        """
        contents = self._read()
        if contents == self._contents:
            return False
        self._current = self._load()
        self._contents = contents
        return True

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:  # noqa: ARG002 - the signature is ssl's
        """Switch to the current certificate; OpenSSL calls this in every handshake, even without SNI."""
        connection.context = self._current

    def _read(self) -> tuple[bytes, ...]:
        contents = tuple(read_file(file, WHERE) for file in self.files)
        for file in self.files:
            if not Path(file).is_file():  # OpenSSL reads it again, and would wait for a FIFO without end
                raise self._refusal(f"{file!r} is not a regular file")
        return contents

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # For an encrypted key, OpenSSL must not prompt at a terminal.
            context.load_cert_chain(*self.files, password=lambda: "")
        except OSError as error:  # includes SSLError
            raise self._refusal(f"{' and '.join(self.files)}: {error}") from None
        return context

    def _refusal(self, problem: str) -> InvalidInput:
        return InvalidInput(WHERE, problem, "a certificate and its unencrypted key, in PEM")
