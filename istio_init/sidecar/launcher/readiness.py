"""`/healthz/ready`: whether Envoy has what it needs from its control plane.

Source: Istio 1.0.5, `pilot/cmd/pilot-agent/status`.
"""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.sidecar.launcher.admin import Admin, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/healthz/ready"
SERVICES = {"CDS": "cluster_manager.cds", "LDS": "listener_manager.lds"}


class Readiness(NamedTuple):
    """What has to be there.

    Attributes:
        admin: Envoy's administration.
        address: the pod's.
        ports: those of the app; an inbound listener for one of them is waited for, if there are any.
    """

    admin: Admin
    address: str
    ports: tuple[int, ...]

    def missing(self) -> str:
        """Say what is not there yet, or nothing."""
        try:
            waiting = [name for name, service in SERVICES.items() if not self.admin.updates(service)]
            if waiting:
                return f"Envoy waits for its control plane: no update of {' and '.join(waiting)} yet"
            if self.ports and not self.admin.inbound_ports(self.address) & set(self.ports):
                return f"no inbound listener yet for any of the ports {', '.join(map(str, self.ports))}"
        except Unreachable as error:
            return f"Envoy's administration does not answer: {error}"
        return ""


class Server(ThreadingHTTPServer):
    """Listens on IPv4 and IPv6 alike: a pod may have addresses of either."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        """Bind, without the library's question to DNS how this host is called."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Be silent about a prober that has gone before its answer came."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # the library's types name its internals


@contextmanager
def serve(readiness: Readiness, port: int) -> Iterator[None]:
    """Answer probes on a port of every address, in threads of their own; port 0 is off.

    Raises:
        InvalidInput: the port cannot be listened on.
    """
    if not port:
        yield
        return
    try:
        server = Server(("", port), _handler(readiness))
    except OSError as error:
        raise InvalidInput("--statusPort", f"cannot listen on {port}: {error.strerror}", "a port that is free") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(readiness: Readiness) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds that a prober may take to ask

        def do_GET(self) -> None:
            missing = readiness.missing() if self.path == PATH else f"only {PATH} is here"
            status = 404 if self.path != PATH else 503 if missing else 200
            body = (missing or "ready").encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's signature
            """Be silent: probes come every few seconds."""

    return Handler
