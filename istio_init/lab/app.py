"""The lab's demo service: answers each GET with what it saw of the request, and may call the next service.

A program of its own: `python -m istio_init.lab.app --service reviews --port 9080`. It logs one line an event to standard
output. At SIGTERM it accepts nothing more, finishes what is under way, and exits with 0.
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
LONGEST_DELAY = 60.0  # seconds
CALL_PATIENCE = LONGEST_DELAY + 5.0  # seconds

# What joins the parts of one trace: an app must hand it on (Istio's docs, "Distributed tracing").
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
    """Who answers.

    Attributes:
        service: the name of the service.
        pod: the name of the pod.
        calls: the URL that `PAGE` calls; empty for none.
    """

    service: str
    pod: str
    calls: str


class Wish(NamedTuple):
    """How a caller wants to be answered.

    Attributes:
        delay: seconds before the answer.
        status: of the answer.
    """

    delay: float = 0.0
    status: int = HTTPStatus.OK

    @classmethod
    def from_query(cls, query: str) -> Wish:
        """Read `delay=SECONDS` (more than `LONGEST_DELAY` is that) and `status=NUMBER`.

        Raises:
            InvalidInput: one of them is no such number.
        """
        given = {name: values[-1] for name, values in parse_qs(query).items()}
        delay, status = given.get("delay", "0"), given.get("status", "200")
        try:
            wish = cls(min(float(delay), LONGEST_DELAY), int(status))
        except ValueError:
            raise InvalidInput(
                "query", f"{query!r} has something that is no number", "delay=SECONDS, status=NUMBER"
            ) from None
        # 1xx is no final answer, and 204 and 304 have no body (RFC 9110, 15).
        bodiless = wish.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        if not wish.delay >= 0 or not 200 <= wish.status <= 599 or bodiless:  # noqa: PLR2004 - statuses of final answers
            raise InvalidInput("query", f"{query!r} is out of range", "a delay from 0, a status of 200..599 with a body")
        return wish


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: App

    def do_GET(self) -> None:
        """Answer one request."""
        parts = urlsplit(self.path)
        try:
            wish = Wish.from_query(parts.query)
        except InvalidInput as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        time.sleep(wish.delay)
        identity = self.server.identity
        told = self._seen() | {"status": wish.status}
        if identity.calls and parts.path == PAGE:
            told["calls"] = call(identity.calls, self.headers)
        self._answer(wish.status, told)

    def _seen(self) -> Json:
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

    def _answer(self, status: int, told: Json) -> None:
        body = (json.dumps(told, indent=2) + "\n").encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if self.server.stopping:
            self.send_header("connection", "close")  # so that nobody sends a further request this way
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log an answered request."""
        del size
        status = code.value if isinstance(code, HTTPStatus) else code
        log("app request", method=self.command, path=self.path, status=status, caller=_text(self.client_address))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        """Log what went wrong with a connection."""
        log("app problem", caller=_text(self.client_address), message=format % args)


class App(ThreadingHTTPServer):
    """Serves until it is told to stop.

    Args:
        place: address and port; `::` takes connections of both families.
        identity: who answers.
    """

    daemon_threads = False  # what is under way is finished
    request_queue_size = 128

    def __init__(self, place: tuple[str, int], identity: Identity) -> None:
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, Handler)
        self.identity = identity
        self.stopping = False
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    def server_bind(self) -> None:
        """Take the port; HTTPServer would also ask DNS for the name of this host, which a pod may have to wait for."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def finish(self) -> None:
        """Accept nothing more, and wait for what is under way; connections without a request are closed."""
        self.stopping = True
        self.shutdown()
        self.socket.close()
        with self._lock:
            for connection in self._connections:
                # Ends the wait for a further request; one that has come can still be read, and answered.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log why a connection ended before its time: mostly, the caller has gone."""
        del request
        log("app problem", caller=_text(client_address), message=repr(sys.exc_info()[1]))


def call(url: str, headers: Mapping[str, str] | Message) -> Json:
    """Call the next service, and give its answer: JSON as it is, else `status` (None for no answer) and `error`.

    Args:
        url: where it is.
        headers: of the request on whose behalf it is called.
    """
    parts = urlsplit(url)
    handed_on = {name: value for name in TRACE_HEADERS if (value := headers.get(name))}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=CALL_PATIENCE)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=handed_on)
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


def _text(place: tuple[Any, ...]) -> str:
    """Write a place; what came by IPv4 to a socket of IPv6 has an address of IPv4 (RFC 4291, 2.5.5.2)."""
    host = place[0].removeprefix("::ffff:") if "." in place[0] else place[0]
    return f"[{host}]:{place[1]}" if ":" in host else f"{host}:{place[1]}"


def main(words: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m istio_init.lab.app", description=__doc__)
    parser.add_argument("--service", required=True, help="the name that answers carry")
    parser.add_argument("--pod", default=socket.gethostname(), help="the host name that answers carry")
    parser.add_argument("--address", default="0.0.0.0", help="where to listen")  # noqa: S104 - callers are other hosts
    parser.add_argument("--port", type=int, default=9080, help="0 is any")
    parser.add_argument("--calls", default="", metavar="URL", help=f"what {PAGE} calls")
    given = parser.parse_args(words)
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # threads inherit this, so that only the wait below takes them
    app = App((given.address, given.port), Identity(given.service, given.pod, given.calls))
    server = threading.Thread(target=app.serve_forever, kwargs={"poll_interval": 0.05})
    server.start()
    log("app listening", service=given.service, port=app.server_address[1])
    signal.sigwait(ends)
    app.finish()
    server.join()
    log("app stopped", service=given.service)


if __name__ == "__main__":
    main()
