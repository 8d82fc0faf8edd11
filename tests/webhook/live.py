"""A running webhook: how a test starts it, asks it, and ends it."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.unit.program import command

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator

    from tests.webhook.reviews import Json

ROOT = Path(__file__).parent.parent.parent
MAKE_CERTIFICATES = ROOT / "docker" / "kubernetes" / "webhook" / "make-certificates"
ADDRESS = "127.0.0.1"
JSON_TYPE = {"Content-Type": "application/json"}
TIMEOUT = 20.0  # seconds for whatever must come
LISTENING = re.compile(r"serving https://127\.0\.0\.1:(\d+)/inject, and http://127\.0\.0\.1:(\d+) ")


def eventually(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not found():
        assert time.monotonic() < deadline, f"{what} within {TIMEOUT} s"
        time.sleep(0.02)


class Certificates(NamedTuple):
    """What the script made."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "tls.crt"

    @property
    def key(self) -> Path:
        return self.directory / "tls.key"

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Make new ones, or renew those that are there."""
        command = [str(MAKE_CERTIFICATES), "--name", ADDRESS, "--name", "localhost", str(directory)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return cls(directory)

    def trust(self) -> ssl.SSLContext:
        """Believe their authority, as an API server with its caBundle does, and nobody else."""
        return ssl.create_default_context(cafile=str(self.directory / "ca.crt"))

    def fingerprint(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate.read_text(encoding="ascii"))


class Reply(NamedTuple):
    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Json:
        assert self.status == 200, self.text
        found: Json = json.loads(self.body)
        return found


class Webhook(NamedTuple):
    """A running one."""

    process: subprocess.Popen[bytes]
    log_file: Path
    port: int
    status_port: int
    trust: ssl.SSLContext

    @classmethod
    @contextmanager
    def start(cls, certificates: Certificates, argv: list[str] | None = None) -> Iterator[Webhook]:
        """Start it, wait until it serves, and end it; that it ends well and tells of no fault is part of every test."""
        program = argv or command(*webhook_arguments(certificates))
        with tempfile.NamedTemporaryFile() as log, subprocess.Popen(program, stderr=log.fileno(), cwd=ROOT) as process:
            log_file = Path(log.name)
            try:
                eventually(lambda: bool(LISTENING.search(log_file.read_text())) or process.poll() is not None, "it serves")
                found = LISTENING.search(log_file.read_text())
                assert found, log_file.read_text()
                yield cls(process, log_file, int(found[1]), int(found[2]), certificates.trust())
                process.terminate()
                assert process.wait(TIMEOUT) == 0, log_file.read_text()
                assert "Traceback" not in log_file.read_text(), log_file.read_text()
            finally:
                process.kill()

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def connect(self) -> http.client.HTTPSConnection:
        """Open a connection of its own, which stays open."""
        connection = http.client.HTTPSConnection(ADDRESS, self.port, timeout=TIMEOUT, context=self.trust)
        connection.connect()
        return connection

    def post(
        self, body: bytes, *, path: str = "/inject", method: str = "POST", headers: dict[str, str] = JSON_TYPE
    ) -> Reply:
        """Ask over a connection of its own."""
        connection = self.connect()
        try:
            return ask(connection, body, path=path, method=method, headers=headers)
        finally:
            connection.close()

    def review(self, asked: Json) -> Json:
        return self.post(json.dumps(asked).encode()).json()

    def status(self, path: str) -> Reply:
        """Ask the plain listener."""
        try:
            with urllib.request.urlopen(f"http://{ADDRESS}:{self.status_port}{path}", timeout=TIMEOUT) as reply:
                return Reply(reply.status, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.read())

    def metric(self, name: str) -> float:
        """Give one sample: `name{label="value"}`."""
        text = self.status("/metrics").text
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(value)

    def presented(self) -> bytes:
        """Give the certificate that a new connection is shown."""
        connection = self.connect()
        try:
            found = connection.sock.getpeercert(binary_form=True)
        finally:
            connection.close()
        assert found
        return bytes(found)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def stand_in_arguments(certificate: Path, key: Path) -> list[str]:
    """Start the server with an injector that does what the pod's annotation says."""
    return [sys.executable, "-m", "tests.webhook.stand_in", str(certificate), str(key)]


def webhook_arguments(certificates: Certificates) -> tuple[str, ...]:
    files = ("--tls-cert", str(certificates.certificate), "--tls-key", str(certificates.key))
    return ("inject", "--webhook", *files, "--webhook-address", ADDRESS, "--webhook-port", "0", "--webhook-status-port", "0")


def ask(
    connection: http.client.HTTPConnection,
    body: bytes,
    *,
    path: str = "/inject",
    method: str = "POST",
    headers: dict[str, str] = JSON_TYPE,
) -> Reply:
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    return Reply(reply.status, reply.read())
