"""Reads the bodies of requests, and limits what they hold together."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import ClientPayloadError, web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# The API server accepts objects of up to 3 MiB, and a review can hold two of them (`object`, `oldObject`).
MAX_BODY = 6 * 1024 * 1024  # bytes
MAX_IN_FLIGHT = 4 * MAX_BODY  # bytes of all bodies together
BODY_TIMEOUT = 10.0  # seconds to receive a body; the API server's own timeout is 10 s


class _Body:
    """A body.

    Attributes:
        content: what has arrived of it.
        timeout: ends the wait for the rest; None unless it is being read.
        is_refused: whether it had to make room.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self.timeout: asyncio.Timeout | None = None
        self.is_refused = False

    def size(self) -> int:
        """Return how many bytes have arrived."""
        return len(self.content)

    def is_incomplete(self) -> bool:
        """Return whether the wait for the rest can still be ended."""
        return self.timeout is not None and not self.timeout.expired() and not self.is_refused


class Bodies:
    """The bodies of all requests in flight."""

    def __init__(self) -> None:
        self._bodies: set[_Body] = set()

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytearray]:
        """Read a request's body, which counts until the context ends.

        If all bodies together are too large, the largest incomplete one is refused: so clients that send large bodies slowly
        do not keep the small ones of ordinary pods from being read.

        Raises:
            web.HTTPException: its content type is not JSON, it is too large, incomplete, late, or refused.
        """
        if request.content_type != "application/json" or "Content-Encoding" in request.headers:
            raise web.HTTPUnsupportedMediaType(text="the body must be uncompressed application/json")
        if (request.content_length or 0) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0)
        body = _Body()
        self._bodies.add(body)
        try:
            await self._receive(body, request)
            yield body.content
        finally:
            self._bodies.discard(body)

    async def _receive(self, body: _Body, request: web.Request) -> None:
        try:
            async with asyncio.timeout(BODY_TIMEOUT) as body.timeout:
                async for chunk in request.content.iter_any():
                    body.content += chunk
                    self._check(body)
        except (web.RequestPayloadError, ClientPayloadError, ConnectionError) as error:
            raise web.HTTPBadRequest(text=f"the body is incomplete: {error}") from None
        except TimeoutError:
            if not body.is_refused:
                raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_TIMEOUT:g} s") from None
        finally:
            body.timeout = None
        if body.is_refused:
            problem = f"the bodies of all requests together exceed {MAX_IN_FLIGHT} bytes, and this is the largest"
            raise web.HTTPServiceUnavailable(text=problem)

    def _check(self, body: _Body) -> None:
        if len(body.content) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, len(body.content))
        if sum(map(_Body.size, self._bodies)) > MAX_IN_FLIGHT:
            self._refuse(max(filter(_Body.is_incomplete, self._bodies), key=_Body.size, default=body))

    def _refuse(self, body: _Body) -> None:
        body.is_refused = True
        body.content = bytearray()
        if body.timeout is not None:
            body.timeout.reschedule(asyncio.get_running_loop().time())
