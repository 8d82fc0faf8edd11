"""Which connections a server keeps: those of clients that ask, and not those that only cost memory.

aiohttp waits for the head of a request for as long as a client likes, so that whoever reaches the port could hold thousands
of connections open, each with its buffers of TLS.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.typedefs import Handler
    from aiohttp.web_protocol import RequestHandler

MOST = 256  # connections; an API server has a few
HEAD_PATIENCE = 10.0  # seconds for the head of a connection's first request
KEEP_PATIENCE = 120.0  # seconds between two requests; an API server itself gives up after 90 (net/http, IdleConnTimeout)
SWEEP = 1.0  # seconds from one look to the next


class Connections:
    """Knows what each connection does, and ends those that do nothing for too long, or are too many."""

    def __init__(self) -> None:
        self._idle_since: dict[RequestHandler, float] = {}
        self._asked: dict[RequestHandler, bool] = {}  # whether it is asking now

    @web.middleware
    async def noticed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Take note of a request, for as long as it is under way."""
        connection = request.protocol
        self._asked[connection] = True
        try:
            return await handler(request)
        finally:
            self._asked[connection] = False
            self._idle_since[connection] = asyncio.get_running_loop().time()

    def sweep(self, connections: Sequence[RequestHandler], now: float) -> int:
        """End connections, and give how many.

        Args:
            connections: all that there are.
            now: the loop's time.
        """
        self._idle_since = {one: self._idle_since.get(one, now) for one in connections}
        self._asked = {one: self._asked[one] for one in connections if one in self._asked}
        idle = [one for one in connections if not self._asked.get(one)]
        idle.sort(key=lambda one: self._idle_since[one])
        busy = len(connections) - len(idle)
        ended = 0
        for position, one in enumerate(idle):
            patience = KEEP_PATIENCE if one in self._asked else HEAD_PATIENCE
            too_many = busy + len(idle) - position > MOST
            if (too_many or now - self._idle_since[one] > patience) and one.transport is not None:
                one.transport.abort()
                ended += 1
        return ended

    async def sweep_for_ever(self, runner: web.AppRunner) -> None:
        """Look after the connections of a server until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP)
            if runner.server is not None:
                self.sweep(runner.server.connections, loop.time())
