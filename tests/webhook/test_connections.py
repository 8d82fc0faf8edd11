"""Connections that cost memory and ask nothing are ended; those of API servers are kept."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock

import pytest

from istio_init.kubernetes.webhook import connections, log
from istio_init.kubernetes.webhook.connections import (
    HANDSHAKE_TIMEOUT,
    HEAD_TIMEOUT,
    KEEP_ALIVE_TIMEOUT,
    MAX_CONNECTIONS,
    Connection,
    Connections,
)
from istio_init.kubernetes.webhook.log import MAX_LINES, PERIOD, Throttle
from tests.unit.program import command
from tests.webhook.live import ADDRESS, TIMEOUT, Certificates, Webhook, ask, eventually, webhook_arguments
from tests.webhook.reviews import bare_pod, encoded, review

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

GOOD = encoded(review(bare_pod("p")))
HALF_A_HEAD = b"POST /inject HTTP/1.1\r\nHost: webhook\r\nX-Ha"
MAX_MEMORY = 150 * 1024  # KiB
ATTACKERS = 500


class Opened:
    """Connections that a listener accepted, with fakes for their clients and for aiohttp."""

    def __init__(self) -> None:
        self.kept = Connections(Mock(), lambda _: None)

    def add(self, since: float) -> Connection:
        one = Connection(Mock(fileno=lambda: 3), Mock(), since)
        one.transport = Mock()
        one.open = Mock()  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", Mock)
            self.kept.admit(one, None)
        return one

    def aborted(self, one: Connection) -> bool:
        return cast("Mock", one.transport).abort.called is True


async def ask_once(opened: Opened, one: Connection) -> None:
    """Send a request on a connection, from its head to its answer, and look at all connections meanwhile."""

    async def handler(_request: web.Request) -> web.Response:
        opened.kept.sweep(1e9)
        assert not opened.aborted(one), "a request is under way"
        return cast("web.Response", Mock())

    await opened.kept.track(Mock(protocol=one.handler), handler)


def test_a_first_request_must_come_soon_and_the_next_may_take_longer() -> None:
    opened = Opened()
    known = opened.add(0)
    asyncio.run(ask_once(opened, known))
    silent = opened.add(known.since)
    for after, expected in (
        (HEAD_TIMEOUT - 1, (False, False)),
        (HEAD_TIMEOUT + 1, (True, False)),
        (KEEP_ALIVE_TIMEOUT - 1, (True, False)),
        (KEEP_ALIVE_TIMEOUT + 1, (True, True)),
    ):
        opened.kept.sweep(known.since + after)
        assert (opened.aborted(silent), opened.aborted(known)) == expected


def test_of_too_many_connections_the_one_that_waits_longest_is_ended() -> None:
    opened = Opened()
    all_of_them = [opened.add(since) for since in range(MAX_CONNECTIONS)]
    assert not any(map(opened.aborted, all_of_them))
    for since in range(3):
        opened.add(MAX_CONNECTIONS + since)
    assert [opened.aborted(one) for one in all_of_them[:4]] == [True, True, True, False]


def test_a_warning_that_comes_too_often_is_counted_instead() -> None:
    lines: list[str] = []
    now = 0.0
    warn = Throttle(lines.append, lambda: now)
    for _ in range(MAX_LINES + 30):
        warn("again")
    assert lines == ["again"] * MAX_LINES + [f"further warnings of this kind are left out, at most {PERIOD:g} s long"]
    now = PERIOD
    warn("once more")
    assert lines[MAX_LINES + 1 :] == ["left out 30 warnings of this kind", "once more"]


# A live server, and clients that ask nothing.


def client_hello(trust: ssl.SSLContext) -> bytes:
    """Give the first message of a handshake."""
    outgoing = ssl.MemoryBIO()
    client = trust.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=ADDRESS)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def open_idle(webhook: Webhook, message: bytes, count: int, stack: ExitStack) -> list[socket.socket]:
    """Open connections that send one message before TLS is complete, and then nothing."""
    opened = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection((ADDRESS, webhook.port), TIMEOUT))
        try:
            client.sendall(message)
        except ConnectionError:
            continue  # ended already
        opened.append(client)
    return opened


def still_open(clients: list[socket.socket]) -> list[socket.socket]:
    """Give those whose server has not closed; what it sent is read."""
    poll = select.poll()
    for client in clients:
        poll.register(client, select.POLLRDHUP)
    gone = {number for number, _ in poll.poll(0)}
    return [client for client in clients if client.fileno() not in gone]


def memory(webhook: Webhook) -> int:
    """Give the most memory that the server ever had, in KiB."""
    status = Path(f"/proc/{webhook.process.pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


@contextmanager
def limited(certificates: Certificates, files: int) -> Iterator[Webhook]:
    """Start a server that may have so many open files."""
    program = ["/bin/sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command(*webhook_arguments(certificates))]
    with Webhook.start(certificates, program) as started:
        yield started


def test_under_an_attack_of_idle_connections_reviews_are_answered(webhook: Webhook) -> None:
    """Half of them say nothing, half stop in the middle of TLS."""
    with ExitStack() as stack, closing(webhook.connect()) as kept:
        assert ask(kept, GOOD).status == 200
        silent = open_idle(webhook, b"", ATTACKERS // 2, stack)
        greeting = open_idle(webhook, client_hello(webhook.trust), ATTACKERS // 2, stack)
        started = time.monotonic()
        assert webhook.post(GOOD).status == 200
        assert time.monotonic() - started < HANDSHAKE_TIMEOUT
        eventually(lambda: len(still_open(silent + greeting)) <= MAX_CONNECTIONS, "those in excess are closed")
        assert still_open(silent + greeting), "the others have some time"
        last = time.monotonic()
        eventually(lambda: not still_open(silent + greeting), "those without a handshake are closed")
        assert time.monotonic() - last < HANDSHAKE_TIMEOUT + 2
        assert webhook.post(GOOD).status == 200
    assert memory(webhook) < MAX_MEMORY
    assert len(webhook.log().splitlines()) < MAX_LINES + 10


def test_without_file_descriptors_it_makes_room_and_says_so_in_a_few_lines(certificates: Certificates) -> None:
    with limited(certificates, 60) as webhook, ExitStack() as stack:
        open_idle(webhook, b"", 100, stack)
        assert webhook.post(GOOD).status == 200
        assert "cannot accept a connection" in webhook.log()
        assert len(webhook.log().splitlines()) < MAX_LINES + 10


def test_handshakes_that_fail_leave_no_line_and_no_memory(webhook: Webhook) -> None:
    webhook.post(GOOD)
    before, lines = memory(webhook), webhook.log()
    for message in (b"GET / HTTP/1.1\r\n\r\n", client_hello(webhook.trust), b""):
        for _ in range(200):
            with socket.create_connection((ADDRESS, webhook.port), TIMEOUT) as client:
                client.sendall(message)
    webhook.post(GOOD)
    assert webhook.log().removeprefix(lines).count("\n") == 1
    assert memory(webhook) - before < 200 * 256  # a buffer of TLS has 256 KiB


@pytest.mark.parametrize("half", [b"", HALF_A_HEAD], ids=["nothing", "half a head"])
def test_a_client_that_never_asks_is_hung_up_on_and_another_is_not(half: bytes, webhook: Webhook) -> None:
    with ExitStack() as stack, closing(webhook.connect()) as kept:
        assert ask(kept, GOOD).status == 200
        plain = stack.enter_context(socket.create_connection((ADDRESS, webhook.status_port), TIMEOUT))
        secret = stack.enter_context(closing(webhook.connect())).sock
        for client in (plain, secret):
            client.sendall(half)
        for client in (plain, secret):
            assert hung_up(client)
        assert ask(kept, GOOD).status == 200


def hung_up(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except (ConnectionError, ssl.SSLEOFError):
        return True


def test_a_client_that_does_not_let_tls_close_is_counted_until_it_is_gone(webhook: Webhook) -> None:
    """After a bad request the server says that it closes, and waits for the client to say so, too."""
    with ExitStack() as stack:
        opened: list[Any] = []
        for _ in range(MAX_CONNECTIONS + 20):
            connection = stack.enter_context(closing(webhook.connect()))
            connection.sock.sendall(b"\r\nbad\r\n\r\n")
            opened.append(connection.sock)
        assert webhook.post(GOOD).status == 200
        eventually(lambda: len(still_open(opened)) <= MAX_CONNECTIONS, "those in excess are closed")
    assert memory(webhook) < MAX_MEMORY


def test_the_limits_are_those_of_the_documentation() -> None:
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    for words in (
        f"at most {MAX_CONNECTIONS} connections",
        f"TLS handshake must be complete within {connections.HANDSHAKE_TIMEOUT:g} s",
        f"first request must come within {HEAD_TIMEOUT:g} s",
        f"next within {KEEP_ALIVE_TIMEOUT:g} s",
        f"at most {log.MAX_LINES} warnings of a kind in {log.PERIOD:g} s",
    ):
        assert words in text
