"""The webhook's two listeners: reviews over HTTPS; readiness and metrics over plain HTTP, for the kubelet and Prometheus."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import ClientPayloadError, web

from istio_init.core.errors import InvalidInput
from istio_init.core.watch import watch
from istio_init.kubernetes.webhook.certificates import ServerCertificate
from istio_init.kubernetes.webhook.connections import Connections
from istio_init.kubernetes.webhook.metrics import BAD_REQUEST, FAILED, TOO_LARGE, Metrics
from istio_init.kubernetes.webhook.review import Answer, Outcome, answer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from istio_init.kubernetes.webhook.review import Injector

INJECT = "/inject"
READY = "/healthz/ready"
LIVE = "/healthz/live"
METRICS = "/metrics"
# The API server takes objects of at most 3 MiB, and a review may hold two of them (`object`, `oldObject`).
LARGEST_BODY = 6 * 1024 * 1024  # bytes
READ_PATIENCE = 10.0  # seconds for a body to arrive; an API server waits 10 s for the answer
DRAIN_PATIENCE = 15.0  # seconds for requests in flight; longer than any API server with our configuration waits
CLOSE_PATIENCE = 2.0  # seconds for the last bytes of answers
SETTLE = 0.2  # seconds of quiet before changed files are read: two files are seldom written at once
STOPPING = (signal.SIGTERM, signal.SIGINT)


class Listeners(NamedTuple):
    """Where to listen; port 0 is any that is free.

    Attributes:
        address: one address, or empty for all of the host's.
        port: of the reviews.
        status_port: of readiness and metrics.
    """

    address: str
    port: int
    status_port: int


class Voice(NamedTuple):
    """How the server tells what it does, from most to least talkative."""

    debug: Callable[[str], None]
    note: Callable[[str], None]
    warn: Callable[[str], None]


class _Heard(logging.Handler):
    """Puts what aiohttp logs, such as a request that is no HTTP, into the log of this program: one line, no traceback."""

    def __init__(self, voice: Voice) -> None:
        super().__init__(logging.WARNING)
        self._voice = voice

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._voice.warn(" ".join(f"{record.getMessage()}: {error or 'no more is known'}".split()))

    def logger(self) -> logging.Logger:
        """Make a logger of its own, so that no other part of the process hears of it."""
        logger = logging.Logger("istio_init.kubernetes.webhook")  # noqa: LOG001 - one that hands nothing on to a root that prints tracebacks
        logger.addHandler(self)
        return logger


class Webhook:
    """Answers requests.

    Args:
        inject: what adds the sidecar to a pod.
        voice: the log.
    """

    def __init__(self, inject: Injector, voice: Voice) -> None:
        self.metrics = Metrics()
        self.ready = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._inject = inject
        self._voice = voice

    def reviews(self) -> web.Application:
        """Give what serves `/inject`."""
        application = web.Application(client_max_size=LARGEST_BODY)
        application.router.add_post(INJECT, self._review)
        return application

    def status(self) -> web.Application:
        """Give what serves `/healthz/ready`, `/healthz/live` and `/metrics`."""
        application = web.Application()
        application.router.add_get(READY, self._readiness)
        application.router.add_get(LIVE, self._liveness)
        application.router.add_get(METRICS, self._metrics)
        return application

    async def drain(self) -> None:
        """Wait for the requests in flight, also those whose body is still to come, but not for ever.

        aiohttp's own end waits for handlers too, but reads nothing any more, so a half-read body would never be whole.
        """
        self.ready = False
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_PATIENCE):
                await self._idle.wait()

    @contextmanager
    def _in_flight_counted(self) -> Iterator[None]:
        self._in_flight += 1
        self._idle.clear()
        try:
            with self.metrics.seconds.time(), self.metrics.in_flight.track_inprogress():
                yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def _review(self, request: web.Request) -> web.Response:
        with self._in_flight_counted():
            response = await self._response(request)
        if not self.ready:
            response.force_close()  # the client's next request goes to somebody else
        return response

    async def _response(self, request: web.Request) -> web.Response:
        try:
            found = self._answer(await _body(request))
        except web.HTTPException as error:
            self.metrics.count(TOO_LARGE if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else BAD_REQUEST)
            return _refusal(error.status, error.text or error.reason, self._voice)
        except (InvalidInput, RecursionError) as error:
            self.metrics.count(BAD_REQUEST)
            return _refusal(HTTPStatus.BAD_REQUEST, str(error), self._voice)
        except Exception as error:  # noqa: BLE001 - one pod that we do not understand must not end the service of all others
            self.metrics.count(FAILED)
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}", self._voice)
        self.metrics.count(found.outcome)
        return web.Response(body=json.dumps(found.review).encode(), content_type="application/json")

    def _answer(self, body: bytes) -> Answer:
        found = answer(body, self._inject)
        match found.outcome:
            case Outcome.INJECTED:
                self._voice.note(found.note)
            case Outcome.DENIED:
                self._voice.warn(found.note)
            case _:
                self._voice.debug(found.note)
        return found

    async def _readiness(self, _request: web.Request) -> web.Response:
        if self.ready:
            return web.Response(text="ready\n")
        return web.Response(text="not serving, or about to end\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _liveness(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def serve(webhook: Webhook, certificate: ServerCertificate, listeners: Listeners, voice: Voice) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight.

    Raises:
        InvalidInput: a port cannot be listened on.
        OSError: the certificate's directory cannot be watched.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, stop.set)
    start = partial(_listening, _Heard(voice).logger())
    async with AsyncExitStack() as stack:
        plain = Place(listeners.address, listeners.status_port, "--webhook-status-port")
        secure = Place(listeners.address, listeners.port, "--webhook-port")
        status = await stack.enter_async_context(start(webhook.status(), plain))
        port = await stack.enter_async_context(start(webhook.reviews(), secure, certificate.listening, webhook.drain))
        await stack.enter_async_context(_reloaded(certificate, webhook.metrics, voice))
        webhook.ready = True
        host = listeners.address or "*"
        voice.note(f"serves https://{host}:{port}{INJECT}, and http://{host}:{status} with {READY} and {METRICS}")
        await stop.wait()
        voice.note("stops: no new connection is taken, and requests in flight are finished")


class Place(NamedTuple):
    """Where one listener is, and the option that said so."""

    address: str
    port: int
    option: str


@asynccontextmanager
async def _listening(
    logger: logging.Logger,
    application: web.Application,
    place: Place,
    context: ssl.SSLContext | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[int]:
    """Serve an application, and give its port; at the end take no more connections, drain, and close those that are left."""
    connections = Connections()
    application.middlewares.append(connections.noticed)
    runner = web.AppRunner(
        application, logger=logger, access_log=None, auto_decompress=False, shutdown_timeout=CLOSE_PATIENCE
    )
    await runner.setup()
    sweeping = asyncio.create_task(connections.sweep_for_ever(runner))
    try:
        site = web.TCPSite(runner, place.address or None, place.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            problem = f"cannot listen on {place.address}:{place.port}: {error.strerror}"
            raise InvalidInput(place.option, problem, "a port that is free") from None
        yield runner.addresses[0][1]
        await site.stop()
        if drain:
            await drain()
    finally:
        sweeping.cancel()
        await runner.cleanup()


@asynccontextmanager
async def _reloaded(certificate: ServerCertificate, metrics: Metrics, voice: Voice) -> AsyncIterator[None]:
    """Read the certificate again whenever its files have changed and are quiet."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.TimerHandle | None = None

    def notice() -> None:
        loop.call_soon_threadsafe(changed)

    def changed() -> None:
        nonlocal waiting
        if waiting:
            waiting.cancel()
        waiting = loop.call_later(SETTLE, reload)

    def reload() -> None:
        try:
            if certificate.reload():
                metrics.count_load(loaded=True)
                voice.note("a new certificate is in use")
        except InvalidInput as error:
            metrics.count_load(loaded=False)
            voice.warn(f"the former certificate stays in use: {error}")

    async with AsyncExitStack() as stack:
        for directory in certificate.directories:
            stack.enter_context(watch(directory, notice))
        changed()  # whatever came between the first reading and the watch
        yield


async def _body(request: web.Request) -> bytes:
    """Read a request's body.

    Raises:
        web.HTTPException: it is not JSON by its own account, too large, or does not come.
    """
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise web.HTTPUnsupportedMediaType(text="the body must be of type application/json, not compressed")
    if (request.content_length or 0) > LARGEST_BODY:
        raise web.HTTPRequestEntityTooLarge(LARGEST_BODY, request.content_length or 0)
    try:
        async with asyncio.timeout(READ_PATIENCE):
            return await request.read()
    except (web.RequestPayloadError, ClientPayloadError, ConnectionError) as error:
        raise web.HTTPBadRequest(text=f"the body did not come whole: {error}") from None
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not come within {READ_PATIENCE:g} s") from None


def _refusal(status: int, message: str, voice: Voice) -> web.Response:
    message = " ".join(message.split())
    voice.warn(f"a request is refused with {status}: {message}")
    return web.Response(status=status, text=f"istio-init: {message}\n")


def run(inject: Injector, files: tuple[str, str], listeners: Listeners, voice: Voice) -> None:
    """Run the webhook until it is told to end.

    Args:
        inject: what adds the sidecar to a pod.
        files: the certificate and its key.
        listeners: where to listen.
        voice: the log.

    Raises:
        InvalidInput: the certificate cannot be used, or a port not be listened on.
        OSError: the certificate's directory cannot be watched.
    """
    asyncio.run(serve(Webhook(inject, voice), ServerCertificate(*files), listeners, voice))
