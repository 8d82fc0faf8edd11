"""The webhook's server: reviews over HTTPS; health checks and metrics over plain HTTP, for the kubelet and Prometheus."""

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
# The API server accepts objects of up to 3 MiB, and a review can hold two of them (`object`, `oldObject`).
MAX_BODY = 6 * 1024 * 1024  # bytes
BODY_TIMEOUT = 10.0  # seconds to receive a body; the API server's own timeout is 10 s
DRAIN_TIMEOUT = 15.0  # seconds for requests in flight; longer than `timeoutSeconds` in our configuration
CLOSE_TIMEOUT = 2.0  # seconds to flush responses
SETTLE_TIME = 0.2  # seconds without changes before files are reloaded: certificate and key are rarely written at once
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Listeners(NamedTuple):
    """Where to listen; port 0 picks a free one.

    Attributes:
        address: one address, or empty for all addresses of the host.
        port: the port for reviews.
        status_port: the port for health checks and metrics.
    """

    address: str
    port: int
    status_port: int


class Logger(NamedTuple):
    """The server's log, one function per level."""

    debug: Callable[[str], None]
    info: Callable[[str], None]
    warn: Callable[[str], None]


class _LogBridge(logging.Handler):
    """Forwards aiohttp's log, such as malformed requests, to this program's log: one line, without a traceback."""

    def __init__(self, server_log: Logger) -> None:
        super().__init__(logging.WARNING)
        self._log = server_log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log.warn(" ".join(f"{record.getMessage()}: {error or 'no details'}".split()))

    def logger(self) -> logging.Logger:
        """Make a standalone logger, whose records do not reach the root logger."""
        logger = logging.Logger("istio_init.kubernetes.webhook")  # noqa: LOG001 - must not propagate: the root prints tracebacks
        logger.addHandler(self)
        return logger


class Webhook:
    """Handles requests.

    Args:
        inject: adds the sidecar to a pod.
        server_log: the log.
    """

    def __init__(self, inject: Injector, server_log: Logger) -> None:
        self.metrics = Metrics()
        self.ready = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._inject = inject
        self._log = server_log

    def reviews(self) -> web.Application:
        """Return the application for `/inject`."""
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_post(INJECT, self._review)
        return application

    def status(self) -> web.Application:
        """Return the application for `/healthz/ready`, `/healthz/live` and `/metrics`."""
        application = web.Application()
        application.router.add_get(READY, self._readiness)
        application.router.add_get(LIVE, self._liveness)
        application.router.add_get(METRICS, self._metrics)
        return application

    async def drain(self) -> None:
        """Wait, up to a timeout, for requests in flight, including those whose body is still arriving.

        aiohttp's own shutdown also waits for handlers but stops reading, so a partial body would never be completed.
        """
        self.ready = False
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await self._idle.wait()

    @contextmanager
    def _track_in_flight(self) -> Iterator[None]:
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
        with self._track_in_flight():
            response = await self._response(request)
        if not self.ready:
            response.force_close()  # makes the client send its next request to another replica
        return response

    async def _response(self, request: web.Request) -> web.Response:
        try:
            found = self._answer(await _body(request))
        except web.HTTPException as error:
            self.metrics.count(TOO_LARGE if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else BAD_REQUEST)
            return _refusal(error.status, error.text or error.reason, self._log)
        except (InvalidInput, RecursionError) as error:
            self.metrics.count(BAD_REQUEST)
            return _refusal(HTTPStatus.BAD_REQUEST, str(error), self._log)
        except Exception as error:  # noqa: BLE001 - an unexpected error with one pod must not stop the server
            self.metrics.count(FAILED)
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}", self._log)
        self.metrics.count(found.outcome)
        return web.Response(body=json.dumps(found.review).encode(), content_type="application/json")

    def _answer(self, body: bytes) -> Answer:
        found = answer(body, self._inject)
        match found.outcome:
            case Outcome.INJECTED:
                self._log.info(found.note)
            case Outcome.DENIED:
                self._log.warn(found.note)
            case _:
                self._log.debug(found.note)
        return found

    async def _readiness(self, _request: web.Request) -> web.Response:
        if self.ready:
            return web.Response(text="ready\n")
        return web.Response(text="starting or shutting down\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _liveness(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def serve(webhook: Webhook, certificate: ServerCertificate, listeners: Listeners, server_log: Logger) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight.

    Raises:
        InvalidInput: cannot listen on a port.
        OSError: the certificate's directory cannot be watched.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    start = partial(_listen, _LogBridge(server_log).logger())
    async with AsyncExitStack() as stack:
        plain = ListenAddress(listeners.address, listeners.status_port, "--webhook-status-port")
        secure = ListenAddress(listeners.address, listeners.port, "--webhook-port")
        status = await stack.enter_async_context(start(webhook.status(), plain))
        port = await stack.enter_async_context(start(webhook.reviews(), secure, certificate.listening, webhook.drain))
        await stack.enter_async_context(_watch_certificate(certificate, webhook.metrics, server_log))
        webhook.ready = True
        host = listeners.address or "*"
        server_log.info(f"serving https://{host}:{port}{INJECT}, and http://{host}:{status} with {READY} and {METRICS}")
        await stop.wait()
        server_log.info("stopping: refusing new connections, finishing requests in flight")


class ListenAddress(NamedTuple):
    """The address and port of a listener, and the option that set the port."""

    address: str
    port: int
    option: str


@asynccontextmanager
async def _listen(
    logger: logging.Logger,
    application: web.Application,
    listen: ListenAddress,
    context: ssl.SSLContext | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[int]:
    """Serve an application and yield its port; on exit stop accepting, drain, and close the remaining connections."""
    connections = Connections()
    application.middlewares.append(connections.track)
    runner = web.AppRunner(
        application, logger=logger, access_log=None, auto_decompress=False, shutdown_timeout=CLOSE_TIMEOUT
    )
    await runner.setup()
    sweeping = asyncio.create_task(connections.sweep_periodically(runner))
    try:
        site = web.TCPSite(runner, listen.address or None, listen.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            problem = f"cannot listen on {listen.address}:{listen.port}: {error.strerror}"
            raise InvalidInput(listen.option, problem, "a free port") from None
        yield runner.addresses[0][1]
        await site.stop()
        if drain:
            await drain()
    finally:
        sweeping.cancel()
        await runner.cleanup()


@asynccontextmanager
async def _watch_certificate(certificate: ServerCertificate, metrics: Metrics, server_log: Logger) -> AsyncIterator[None]:
    """Reload the certificate whenever its files have changed and settled."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def on_change() -> None:
        loop.call_soon_threadsafe(schedule_reload)

    def schedule_reload() -> None:
        nonlocal timer
        if timer:
            timer.cancel()
        timer = loop.call_later(SETTLE_TIME, reload)

    def reload() -> None:
        try:
            if certificate.reload():
                metrics.count_load(loaded=True)
                server_log.info("loaded a new certificate")
        except InvalidInput as error:
            metrics.count_load(loaded=False)
            server_log.warn(f"the previous certificate stays in use: {error}")

    async with AsyncExitStack() as stack:
        for directory in certificate.directories:
            stack.enter_context(watch(directory, on_change))
        schedule_reload()  # for changes between the first load and the start of the watch
        yield


async def _body(request: web.Request) -> bytes:
    """Read a request's body.

    Raises:
        web.HTTPException: its content type is not JSON, it is too large, incomplete, or late.
    """
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise web.HTTPUnsupportedMediaType(text="the body must be uncompressed application/json")
    if (request.content_length or 0) > MAX_BODY:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except (web.RequestPayloadError, ClientPayloadError, ConnectionError) as error:
        raise web.HTTPBadRequest(text=f"the body is incomplete: {error}") from None
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_TIMEOUT:g} s") from None


def _refusal(status: int, message: str, server_log: Logger) -> web.Response:
    message = " ".join(message.split())
    server_log.warn(f"rejected a request with status {status}: {message}")
    return web.Response(status=status, text=f"istio-init: {message}\n")


def run(inject: Injector, files: tuple[str, str], listeners: Listeners, server_log: Logger) -> None:
    """Run the webhook until SIGTERM or SIGINT.

    Args:
        inject: adds the sidecar to a pod.
        files: the certificate and its key.
        listeners: where to listen.
        server_log: the log.

    Raises:
        InvalidInput: the certificate is unusable, or cannot listen on a port.
        OSError: the certificate's directory cannot be watched.
    """
    asyncio.run(serve(Webhook(inject, server_log), ServerCertificate(*files), listeners, server_log))
