"""The readiness probe `/healthz/ready`: whether Envoy has received its configuration from the control plane.

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
    """The conditions for readiness.

    Attributes:
        admin: Envoy's admin interface.
        address: the pod's address.
        ports: the app's ports; if there are any, at least one must have an inbound listener.
    """

    admin: Admin
    address: str
    ports: tuple[int, ...]

    def missing(self) -> str:
        """Return the reason why Envoy is not ready, or an empty string."""
        try:
            waiting = [name for name, service in SERVICES.items() if not self.admin.updates(service)]
            if waiting:
                return f"waiting for the control plane: no {' or '.join(waiting)} update received yet"
            if self.ports and not self.admin.inbound_ports(self.address) & set(self.ports):
                return f"no inbound listener yet for any of ports {', '.join(map(str, self.ports))}"
        except Unreachable as error:
            return f"Envoy's admin interface does not respond: {error}"
        return ""


class ProbeServer(ThreadingHTTPServer):
    """Listens on IPv4 and IPv6: a pod can have either."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        """Bind without the reverse DNS lookup of `HTTPServer`."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect before they get a response."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # typeshed requires the library's internal types


@contextmanager
def serve(readiness: Readiness, port: int) -> Iterator[None]:
    """Serve probes on a port of all addresses, in background threads; port 0 disables this.

    Raises:
        InvalidInput: cannot listen on the port.
    """
    if not port:
        yield
        return
    try:
        server = ProbeServer(("", port), _handler(readiness))
    except OSError as error:
        raise InvalidInput("--statusPort", f"cannot listen on {port}: {error.strerror}", "a free port") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(readiness: Readiness) -> type[BaseHTTPRequestHandler]:
    class ProbeHandler(BaseHTTPRequestHandler):
        timeout = 10  # seconds to receive a request

        def do_GET(self) -> None:
            missing = readiness.missing() if self.path == PATH else f"only {PATH} is served here"
            status = 404 if self.path != PATH else 503 if missing else 200
            body = (missing or "ready").encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - overrides the library's signature
            """Do not log: probes arrive every few seconds."""

    return ProbeHandler
