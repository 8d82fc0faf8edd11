"""Connections that cost memory and ask nothing are ended; those of API servers are kept."""

from __future__ import annotations

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock

import pytest

from istio_init.kubernetes.webhook.connections import HEAD_TIMEOUT, KEEP_ALIVE_TIMEOUT, MAX_CONNECTIONS, Connections
from tests.webhook.live import ADDRESS, TIMEOUT, Webhook
from tests.webhook.reviews import bare_pod, encoded, review

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler


def handlers(count: int) -> list[Any]:
    return [Mock() for _ in range(count)]


def aborted(connections: list[Any]) -> list[int]:
    return [index for index, one in enumerate(connections) if one.transport.abort.called]


async def ask(kept: Connections, connection: RequestHandler) -> None:
    """Send a request on a connection, from its head to its answer, and look at all connections meanwhile."""

    async def handler(_request: web.Request) -> web.Response:
        assert kept.sweep([connection], 1e9) == 0, "a request is under way"
        return cast("web.Response", Mock())

    await kept.track(Mock(protocol=connection), handler)


def test_a_first_request_must_come_soon_and_the_next_may_take_longer() -> None:
    kept, (silent, known) = Connections(), handlers(2)
    asyncio.run(ask(kept, known))
    now = kept._idle_since[known]  # noqa: SLF001 - the loop's clock at that time
    assert kept.sweep([silent, known], now) == 0
    assert kept.sweep([silent, known], now + HEAD_TIMEOUT + 1) == 1
    assert aborted([silent, known]) == [0]
    assert kept.sweep([known], now + KEEP_ALIVE_TIMEOUT - 1) == 0
    assert kept.sweep([known], now + KEEP_ALIVE_TIMEOUT + 1) == 1


def test_of_too_many_connections_those_that_wait_longest_are_ended() -> None:
    kept, connections = Connections(), handlers(MAX_CONNECTIONS + 3)
    kept.sweep(connections[:10], 0)
    assert kept.sweep(connections, 1) == 3
    assert aborted(connections) == [0, 1, 2]


@pytest.mark.parametrize("half", [b"", b"POST /inject HTTP/1.1\r\nHost: webhook\r\nX-Ha"], ids=["nothing", "half a head"])
def test_a_client_that_never_asks_is_hung_up_on_and_another_is_not(half: bytes, webhook: Webhook) -> None:
    def wait(port: int, trust: ssl.SSLContext | None) -> bytes:
        with socket.create_connection((ADDRESS, port), TIMEOUT) as plain:
            client = trust.wrap_socket(plain, server_hostname=ADDRESS) if trust else plain
            client.sendall(half)
            try:
                return client.recv(1)
            except (ConnectionError, ssl.SSLEOFError):
                return b""
            finally:
                client.close()

    kept = webhook.connect()
    kept.request("POST", "/inject", encoded(review(bare_pod("p"))), {"Content-Type": "application/json"})
    assert kept.getresponse().read()
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(wait, webhook.port, webhook.trust), pool.submit(wait, webhook.status_port, None)]
        assert [one.result(timeout=TIMEOUT) for one in waiting] == [b"", b""]
    kept.request("POST", "/inject", encoded(review(bare_pod("p"))), {"Content-Type": "application/json"})
    assert kept.getresponse().status == 200
    kept.close()
