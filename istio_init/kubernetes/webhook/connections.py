"""Limits on idle connections, against slow-client denial of service.

aiohttp has no timeout for a request's head, so any client that reaches the port could hold thousands of connections open,
each with its TLS buffers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.typedefs import Handler
    from aiohttp.web_protocol import RequestHandler

MAX_CONNECTIONS = 256  # an API server needs a few
HEAD_TIMEOUT = 10.0  # seconds to receive the head of a connection's first request
KEEP_ALIVE_TIMEOUT = 120.0  # seconds between requests; an API server closes after 90 (net/http, IdleConnTimeout)
SWEEP_INTERVAL = 1.0  # seconds


class Connections:
    """Tracks the connections of a server, and aborts those that are idle for too long or too many."""

    def __init__(self) -> None:
        self._idle_since: dict[RequestHandler, float] = {}
        self._busy: dict[RequestHandler, bool] = {}  # connections that have sent a request → whether one is in flight

    @web.middleware
    async def track(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Mark a connection as busy while it has a request in flight."""
        connection = request.protocol
        self._busy[connection] = True
        try:
            return await handler(request)
        finally:
            self._busy[connection] = False
            self._idle_since[connection] = asyncio.get_running_loop().time()

    def sweep(self, connections: Sequence[RequestHandler], now: float) -> int:
        """Abort idle and excess connections, and return how many.

        Args:
            connections: all open connections.
            now: the event loop's time.
        """
        self._idle_since = {one: self._idle_since.get(one, now) for one in connections}
        self._busy = {one: self._busy[one] for one in connections if one in self._busy}
        idle = [one for one in connections if not self._busy.get(one)]
        idle.sort(key=lambda one: self._idle_since[one])
        busy = len(connections) - len(idle)
        aborted = 0
        for position, one in enumerate(idle):
            timeout = KEEP_ALIVE_TIMEOUT if one in self._busy else HEAD_TIMEOUT
            too_many = busy + len(idle) - position > MAX_CONNECTIONS
            if (too_many or now - self._idle_since[one] > timeout) and one.transport is not None:
                one.transport.abort()
                aborted += 1
        return aborted

    async def sweep_periodically(self, runner: web.AppRunner) -> None:
        """Sweep a server's connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            if runner.server is not None:
                self.sweep(runner.server.connections, loop.time())
