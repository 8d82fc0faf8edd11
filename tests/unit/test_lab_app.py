"""The demo service tells what it saw, calls the next one, and ends without dropping anything."""

from __future__ import annotations

import fcntl
import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.lab.app import App, Identity, ResponseOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCALHOST = "127.0.0.1"
TIMEOUT = 20.0  # seconds
FREE_PORT_OF_NOBODY = 1  # tcpmux, which nothing serves


@contextmanager
def app(calls: str = "", service: str = "reviews") -> Iterator[App]:
    serving = App((LOCALHOST, 0), Identity(service, f"{service}-v1", calls))
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield serving
    finally:
        serving.finish()
        thread.join()


@contextmanager
def connection_to_port(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(LOCALHOST, port, timeout=TIMEOUT)
    try:
        yield connection
    finally:
        connection.close()


def connection_to(serving: App) -> AbstractContextManager[http.client.HTTPConnection]:
    return connection_to_port(serving.server_address[1])


def get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection.request("GET", path, headers=headers or {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def url(serving: App) -> str:
    return f"http://{LOCALHOST}:{serving.server_address[1]}/"


def test_an_answer_tells_what_the_app_saw() -> None:
    with app() as serving, connection_to(serving) as connection:
        status, told = get(connection, "/some/path?x=1", {"X-Mine": "yes"})
        caller = "{}:{}".format(*connection.sock.getsockname())
    assert status == HTTPStatus.OK
    assert told.pop("headers")["x-mine"] == "yes"
    assert told == {
        "service": "reviews",
        "hostname": "reviews-v1",
        "caller": caller,
        "address": f"{LOCALHOST}:{serving.server_address[1]}",
        "method": "GET",
        "path": "/some/path?x=1",
        "status": 200,
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_app_of_both_families_tells_each_client_by_its_own_address(host: str) -> None:
    serving = App(("::", 0), Identity("reviews", "reviews-v1", ""))
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    connection = http.client.HTTPConnection(host, serving.server_address[1], timeout=TIMEOUT)
    try:
        _, told = get(connection, "/")
        port = connection.sock.getsockname()[1]
    finally:
        connection.close()
        serving.finish()
        thread.join()
    shown = f"[{host}]" if ":" in host else host
    assert (told["caller"], told["address"]) == (f"{shown}:{port}", f"{shown}:{serving.server_address[1]}")


def test_a_connection_serves_several_requests() -> None:
    with app() as serving, connection_to(serving) as connection:
        callers = [get(connection, "/")[1]["caller"] for _ in range(3)]
    assert len(set(callers)) == 1


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_caller_may_ask_for_a_status(status: int) -> None:
    with app() as serving, connection_to(serving) as connection:
        answered, told = get(connection, f"/?status={status}")
    assert (answered, told["status"]) == (status, status)


def test_a_caller_may_ask_for_a_delay() -> None:
    with app() as serving, connection_to(serving) as connection:
        before = time.monotonic()
        get(connection, "/?delay=0.3")
        assert time.monotonic() - before >= 0.3


@pytest.mark.parametrize(
    ("query", "options"),
    [("", ResponseOptions()), ("delay=1000", ResponseOptions(60.0)), ("status=503&delay=.5", ResponseOptions(0.5, 503))],
)
def test_response_options_are_read_and_a_delay_is_bounded(query: str, options: ResponseOptions) -> None:
    assert ResponseOptions.from_query(query) == options


@pytest.mark.parametrize(
    "query", ["delay=x", "delay=-1", "delay=nan", "status=x", "status=100", "status=204", "status=304", "status=600"]
)
def test_bad_response_options_are_a_bad_request(query: str) -> None:
    with pytest.raises(InvalidInput, match="query"):
        ResponseOptions.from_query(query)
    with app() as serving, connection_to(serving) as connection:
        status, told = get(connection, f"/?{query}")
    assert status == HTTPStatus.BAD_REQUEST
    assert query in told["error"]


def test_the_product_page_has_the_answer_of_the_next_service_and_hands_the_trace_on() -> None:
    trace = {"x-request-id": "4711", "X-B3-TraceId": "80f198ee56343ba8", "x-b3-sampled": "1"}
    with app(service="reviews") as reviews, app(url(reviews), "productpage") as page, connection_to(page) as connection:
        status, told = get(connection, "/productpage?x=1", {**trace, "cookie": "secret"})
    called = told["calls"]
    assert (status, told["service"], called["service"], called["path"]) == (200, "productpage", "reviews", "/")
    assert {name: called["headers"].get(name.lower()) for name in trace} == trace
    assert "cookie" not in called["headers"]


def test_only_the_product_page_calls_the_next_service() -> None:
    with app() as reviews, app(url(reviews)) as page, connection_to(page) as connection:
        assert "calls" not in get(connection, "/")[1]


@pytest.mark.parametrize("query", ["status=503", "status=200"])
def test_the_product_page_shows_which_status_it_was_given(query: str) -> None:
    with app() as reviews, app(f"{url(reviews)}?{query}") as page, connection_to(page) as connection:
        assert get(connection, "/productpage")[1]["calls"]["status"] == int(query.partition("=")[2])


def test_the_product_page_shows_that_nobody_answered() -> None:
    with app(f"http://{LOCALHOST}:{FREE_PORT_OF_NOBODY}/") as page, connection_to(page) as connection:
        status, told = get(connection, "/productpage")
    assert status == HTTPStatus.OK
    assert told["calls"]["status"] is None
    assert "refused" in told["calls"]["error"]


@pytest.mark.parametrize("body", [b"no healthy upstream", b"[1]"])
def test_the_product_page_shows_an_answer_that_is_no_object(body: bytes) -> None:
    with socket.create_server((LOCALHOST, 0)) as proxy:
        thread = threading.Thread(target=answer_once, args=(proxy, body))
        thread.start()
        with app(f"http://{LOCALHOST}:{proxy.getsockname()[1]}/") as page, connection_to(page) as connection:
            told = get(connection, "/productpage")[1]
        thread.join()
    assert told["calls"] == {"status": 503, "error": body.decode()}


def answer_once(server: socket.socket, body: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n" + body)


def test_each_request_is_one_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with app() as serving, connection_to(serving) as connection:
        get(connection, "/x?status=503")
        caller = "{}:{}".format(*connection.sock.getsockname())
    assert capsys.readouterr().out == f"app request method=GET path=/x?status=503 status=503 caller={caller}\n"


def test_sigterm_finishes_what_is_under_way_and_drops_idle_connections() -> None:
    command = [sys.executable, "-m", "istio_init.lab.app", "--service", "reviews", "--address", LOCALHOST, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program, ExitStack() as stack:
        stack.callback(program.kill)
        assert program.stdout is not None
        port = int(program.stdout.readline().rpartition("port=")[2])
        idle, busy = (stack.enter_context(connection_to_port(port)) for _ in range(2))
        get(idle, "/")
        get(busy, "/")
        busy.request("GET", "/?delay=2")
        wait_until_read(busy)
        program.send_signal(signal.SIGTERM)
        assert idle.sock.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOCALHOST, port), timeout=TIMEOUT).close()
        response = busy.getresponse()
        assert (response.status, response.getheader("connection")) == (200, "close")
        assert json.loads(response.read())["path"] == "/?delay=2"
        assert program.wait(TIMEOUT) == 0
        assert program.stdout.read().splitlines()[-1] == "app stopped service=reviews"


def wait_until_read(connection: http.client.HTTPConnection) -> None:
    """Wait until the other end's kernel has all that was sent."""
    deadline = time.monotonic() + TIMEOUT
    while unsent(connection.sock) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert unsent(connection.sock) == 0


def unsent(connection: socket.socket) -> int:
    """Count the bytes that the other end has not acknowledged (SIOCOUTQ, tcp(7))."""
    (number,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, struct.pack("i", 0)))
    return int(number)
