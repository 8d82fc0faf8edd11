"""Accepts connections, and limits how many are open and how long they may idle, against denial of service by slow clients.

asyncio's own servers accept without a limit and start TLS at once, which takes 0.3 to 0.5 MB for each client that reaches
the port, and they log a traceback for each attempt to accept when file descriptors run out. aiohttp, which sees a connection
only after its TLS handshake, has no timeout for a request's head. Therefore connections are accepted and counted here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from aiohttp.typedefs import Handler
    from aiohttp.web_protocol import RequestHandler

MAX_CONNECTIONS = 128  # from accept on; an API server needs a few, but opens one for each review in flight
HANDSHAKE_TIMEOUT = 5.0  # seconds for the TLS handshake, and again for TLS' closing alert
HEAD_TIMEOUT = 10.0  # seconds from accept to the head of the first request
KEEP_ALIVE_TIMEOUT = 120.0  # seconds between requests; an API server closes after 90 (net/http, IdleConnTimeout)
SWEEP_INTERVAL = 1.0  # seconds
ACCEPT_RETRY_DELAY = 0.01  # seconds
BACKLOG = 1024  # connections that the kernel holds until they are accepted


class Connection:
    """A connection, from accept until its socket is closed.

    Attributes:
        handler: aiohttp's side of it.
        since: the loop's time of its last event: accept, the head of a request, or a response.
        timeout: how long it may idle, in seconds.
        in_flight: whether it has a request in flight, which has timeouts of its own.
        transport: None until the TLS handshake is complete.
        opening: the handshake.
    """

    def __init__(self, accepted: socket.socket, handler: RequestHandler, now: float) -> None:
        self._socket = accepted
        self.handler = handler
        self.since = now
        self.timeout = HEAD_TIMEOUT
        self.in_flight = False
        self.transport: asyncio.Transport | None = None
        self.opening: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it still has its socket; aiohttp lets go of a connection before TLS has closed it."""
        return self._socket.fileno() >= 0

    def is_overdue(self, now: float) -> bool:
        """Return whether it idles for too long."""
        return not self.in_flight and now - self.since > self.timeout

    async def open(self, context: ssl.SSLContext | None) -> None:
        """Complete the TLS handshake, if there is a context, and hand the connection to aiohttp."""
        timeout = HANDSHAKE_TIMEOUT if context else None
        try:
            self.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self.handler,
                self._socket,
                ssl=context,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=timeout,
            )
        except OSError as error:  # the client's problem: no TLS (SSLError), too slow (ConnectionAbortedError), or gone
            error.__traceback__ = None  # a cycle with the TLS buffers, which would stay until the next garbage collection
        self.opening = None

    def abort(self) -> None:
        """Close it at once."""
        if self.transport is not None:
            # While TLS waits for the client's closing alert, a transport that was closed twice has forgotten its connection:
            # `abort` then does nothing, and raises AttributeError in Python 3.11. The socket still ends the wait.
            with suppress(AttributeError):
                self.transport.abort()
            with suppress(OSError):  # not connected any more
                self._socket.shutdown(socket.SHUT_RDWR)
        elif self.opening is not None:
            self.opening.cancel()
            self.opening = None  # a cycle, as above


class Connections:
    """The connections of one listener.

    Args:
        runner: has the server, which makes aiohttp's side of a connection.
        warn: logs that connections were closed, or could not be accepted.
    """

    def __init__(self, runner: web.AppRunner, warn: Callable[[str], None]) -> None:
        self._runner = runner
        self._warn = warn
        self._open: dict[RequestHandler, Connection] = {}

    @web.middleware
    async def track(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note when a request begins and ends."""
        connection = self._open.get(request.protocol)
        if connection is None:  # aborted in the meantime
            return await handler(request)
        loop = asyncio.get_running_loop()
        connection.since, connection.in_flight = loop.time(), True
        try:
            return await handler(request)
        finally:
            connection.since, connection.in_flight = loop.time(), False
            connection.timeout = KEEP_ALIVE_TIMEOUT

    async def accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:  # such as too many open files
                self._warn(f"cannot accept a connection, so the one that idles longest is closed: {error.strerror}")
                self._abort_oldest()
                await asyncio.sleep(ACCEPT_RETRY_DELAY)
                continue
            if self._runner.server is not None:
                self.admit(Connection(accepted, self._runner.server(), loop.time()), context)
            await asyncio.sleep(0)  # `sock_accept` does not suspend if a connection is waiting

    def admit(self, connection: Connection, context: ssl.SSLContext | None) -> None:
        """Add a connection; if there are too many, abort the one without an event for longest.

        Thereby clients that occupy all connections do not shut out others: each newcomer has the time in which they can
        open as many again.
        """
        self._forget_closed()
        while len(self._open) >= MAX_CONNECTIONS:
            self._warn(f"closed the connection that idles longest: more than {MAX_CONNECTIONS} are open")
            self._abort_oldest()
        self._open[connection.handler] = connection
        connection.opening = asyncio.get_running_loop().create_task(connection.open(context))

    def sweep(self, now: float) -> None:
        """Abort the connections that idle for too long at the loop's time `now`."""
        self._forget_closed()
        for connection in [one for one in self._open.values() if one.is_overdue(now)]:
            self._abort(connection)

    async def sweep_periodically(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            self.sweep(asyncio.get_running_loop().time())

    def abort_all(self) -> None:
        """Abort all connections."""
        for connection in list(self._open.values()):
            self._abort(connection)

    def _forget_closed(self) -> None:
        self._open = {handler: one for handler, one in self._open.items() if one.is_open}

    def _abort_oldest(self) -> None:
        if self._open:
            self._abort(min(self._open.values(), key=lambda one: one.since))

    def _abort(self, connection: Connection) -> None:
        del self._open[connection.handler]
        connection.abort()


def listen(address: str, port: int) -> socket.socket:
    """Make a listening socket.

    Args:
        address: an IP address, or empty for all addresses of both families.
        port: the port; 0 picks a free one.

    Raises:
        OSError: it cannot be had; the message names neither address nor port.
    """
    try:
        if address:
            hints = socket.AI_NUMERICHOST | socket.AI_PASSIVE
            ((family, _, _, _, place), *_) = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=hints)
            listener = socket.create_server(place, family=family, backlog=BACKLOG)
        else:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            listener = socket.create_server(("", port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0)) from None
    listener.setblocking(False)  # noqa: FBT003 - it takes no name
    return listener
