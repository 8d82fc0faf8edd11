"""The lab's demo service: answers each GET with a description of the request, and can call the next service.

A separate program: `python -m istio_init.lab.app --service reviews --port 9080`. It logs one line per event to standard
output. On SIGTERM it stops accepting connections, finishes requests in flight, and exits with status 0.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from istio_init.core.errors import InvalidInput
from istio_init.lab.events import log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message

PAGE = "/productpage"  # the path that calls the next service
MAX_DELAY = 60.0  # seconds
CALL_TIMEOUT = MAX_DELAY + 5.0  # seconds
FINAL_STATUSES = range(200, 600)

# Headers that an app must propagate to correlate the spans of a trace (Istio's docs, "Distributed tracing").
TRACE_HEADERS = (
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
)

Json = dict[str, Any]


class Identity(NamedTuple):
    """The app's identity, and what it calls.

    Attributes:
        service: the name of the service.
        pod: the name of the pod.
        calls: the URL that `PAGE` calls; empty for none.
    """

    service: str
    pod: str
    calls: str


class ResponseOptions(NamedTuple):
    """How to respond, as requested by the caller.

    Attributes:
        delay: seconds before the response.
        status: the response's status.
    """

    delay: float = 0.0
    status: int = HTTPStatus.OK

    @classmethod
    def from_query(cls, query: str) -> ResponseOptions:
        """Parse `delay=SECONDS`, capped at `MAX_DELAY`, and `status=NUMBER`.

        Raises:
            InvalidInput: a value is not a number, or out of range.
        """
        values = {name: values[-1] for name, values in parse_qs(query).items()}
        delay, status = values.get("delay", "0"), values.get("status", "200")
        try:
            options = cls(min(float(delay), MAX_DELAY), int(status))
        except ValueError:
            raise InvalidInput("query", f"{query!r} has a non-numeric value", "delay=SECONDS, status=NUMBER") from None
        # 1xx is not a final response, and 204 and 304 have no body (RFC 9110, 15).
        bodiless = options.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        if not options.delay >= 0 or options.status not in FINAL_STATUSES or bodiless:
            raise InvalidInput("query", f"{query!r} is out of range", "a delay from 0, a status of 200..599 with a body")
        return options


class AppHandler(BaseHTTPRequestHandler):
    """Handles the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: App

    def do_GET(self) -> None:
        """Answer one request."""
        parts = urlsplit(self.path)
        try:
            options = ResponseOptions.from_query(parts.query)
        except InvalidInput as error:
            self._respond(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        time.sleep(options.delay)
        identity = self.server.identity
        content = self._describe() | {"status": options.status}
        if identity.calls and parts.path == PAGE:
            content["calls"] = call(identity.calls, self.headers)
        self._respond(options.status, content)

    def _describe(self) -> Json:
        identity = self.server.identity
        return {
            "service": identity.service,
            "hostname": identity.pod,
            "caller": _text(self.client_address),
            "address": _text(self.connection.getsockname()),
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }

    def _respond(self, status: int, content: Json) -> None:
        body = (json.dumps(content, indent=2) + "\n").encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if self.server.stopping:
            self.send_header("connection", "close")  # so that no further request is sent on this connection
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log a completed request."""
        del size
        status = code.value if isinstance(code, HTTPStatus) else code
        log("app request", method=self.command, path=self.path, status=status, caller=_text(self.client_address))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - overrides http.server's signature
        """Log a problem with a connection."""
        log("app error", caller=_text(self.client_address), message=format % args)


class App(ThreadingHTTPServer):
    """The app's server, with graceful shutdown.

    Args:
        listen: address and port; `::` also accepts IPv4.
        identity: the app's identity.
    """

    daemon_threads = False  # requests in flight are finished
    request_queue_size = 128

    def __init__(self, listen: tuple[str, int], identity: Identity) -> None:
        self.address_family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        super().__init__(listen, AppHandler)
        self.identity = identity
        self.stopping = False
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    def server_bind(self) -> None:
        """Bind without the reverse DNS lookup of `HTTPServer`, which can block in a pod."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in its own thread."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def finish(self) -> None:
        """Stop accepting, close idle connections, and wait for requests in flight."""
        self.stopping = True
        self.shutdown()
        self.socket.close()
        with self._lock:
            for connection in self._connections:
                # Ends the wait for a further request; one already received can still be read and answered.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log why a connection was aborted, usually by the caller."""
        del request
        log("app error", caller=_text(client_address), message=repr(sys.exc_info()[1]))


def call(url: str, headers: Mapping[str, str] | Message) -> Json:
    """Call the next service, and return its JSON response, or else `status` (None if it did not respond) and `error`.

    Args:
        url: the URL of the service.
        headers: the headers of the incoming request, from which the trace headers are propagated.
    """
    parts = urlsplit(url)
    propagated = {name: value for name in TRACE_HEADERS if (value := headers.get(name))}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=CALL_TIMEOUT)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=propagated)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return {"status": None, "error": str(error) or repr(error)}
    finally:
        connection.close()
    with suppress(ValueError):
        answer = json.loads(text)
        if isinstance(answer, dict):
            return answer
    return {"status": response.status, "error": text.strip()}


def _text(address: tuple[Any, ...]) -> str:
    """Format a socket address; IPv4-mapped IPv6 addresses are shown as IPv4 (RFC 4291, 2.5.5.2)."""
    host = address[0].removeprefix("::ffff:") if "." in address[0] else address[0]
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def main(words: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m istio_init.lab.app", description=__doc__)
    parser.add_argument("--service", required=True, help="name of the service, shown in responses")
    parser.add_argument("--pod", default=socket.gethostname(), help="name of the pod, shown in responses")
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on")  # noqa: S104 - callers are other hosts
    parser.add_argument("--port", type=int, default=9080, help="port to listen on; 0 picks a free one")
    parser.add_argument("--calls", default="", metavar="URL", help=f"service that {PAGE} calls")
    arguments = parser.parse_args(words)
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # threads inherit the mask, so only sigwait() below receives them
    app = App((arguments.address, arguments.port), Identity(arguments.service, arguments.pod, arguments.calls))
    server = threading.Thread(target=app.serve_forever, kwargs={"poll_interval": 0.05})
    server.start()
    log("app listening", service=arguments.service, port=app.server_address[1])
    signal.sigwait(stop_signals)
    app.finish()
    server.join()
    log("app stopped", service=arguments.service)


if __name__ == "__main__":
    main()
