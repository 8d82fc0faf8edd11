"""The webhook's server: reviews over HTTPS; health checks and metrics over plain HTTP, for the kubelet and Prometheus."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from istio_init.core.errors import InvalidInput
from istio_init.core.watch import watch
from istio_init.kubernetes.webhook.bodies import MAX_BODY, Bodies
from istio_init.kubernetes.webhook.certificates import ServerCertificate
from istio_init.kubernetes.webhook.connections import Connections, listen
from istio_init.kubernetes.webhook.log import LogBridge, Logger, Throttle
from istio_init.kubernetes.webhook.metrics import BAD_REQUEST, FAILED, TOO_LARGE, TOO_MUCH, Metrics
from istio_init.kubernetes.webhook.review import Answer, Outcome, answer

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from istio_init.kubernetes.webhook.review import Injector

INJECT = "/inject"
READY = "/healthz/ready"
LIVE = "/healthz/live"
METRICS = "/metrics"
LARGE_BODY = 32 * 1024  # bytes; most pods have less. What is larger could keep the event loop from everything else
DRAIN_TIMEOUT = 15.0  # seconds for requests in flight; longer than `timeoutSeconds` in our configuration
CLOSE_TIMEOUT = 2.0  # seconds to flush responses
SETTLE_TIME = 0.2  # seconds without changes before files are reloaded: certificate and key are rarely written at once
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
REFUSALS: dict[int, str] = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TOO_LARGE,
    HTTPStatus.SERVICE_UNAVAILABLE: TOO_MUCH,
}  # status → outcome


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
        self._warn_of_refusal = Throttle(server_log.warn)
        self._bodies = Bodies()
        self._worker = ThreadPoolExecutor(1, "review")  # a single one, since a large review takes memory and CPU time

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
            async with self._bodies.read(request) as body:
                found, text = await self._answer(body)
        except web.HTTPException as error:
            self.metrics.count(REFUSALS.get(error.status, BAD_REQUEST))
            return self._refusal(error.status, error.text or error.reason)
        except (InvalidInput, RecursionError) as error:
            self.metrics.count(BAD_REQUEST)
            return self._refusal(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # noqa: BLE001 - an unexpected error with one pod must not stop the server
            self.metrics.count(FAILED)
            return self._refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        self.metrics.count(found.outcome)
        self._log_outcome(found)
        return web.Response(body=text, content_type="application/json")

    async def _answer(self, body: bytearray) -> tuple[Answer, bytes]:
        if len(body) <= LARGE_BODY:
            return _answer(body, self._inject)
        return await asyncio.get_running_loop().run_in_executor(self._worker, _answer, body, self._inject)

    def _log_outcome(self, found: Answer) -> None:
        match found.outcome:
            case Outcome.INJECTED:
                self._log.info(found.note)
            case Outcome.DENIED:
                self._log.warn(found.note)
            case _:
                self._log.debug(found.note)

    def _refusal(self, status: int, message: str) -> web.Response:
        message = " ".join(message.split())
        self._warn_of_refusal(f"rejected a request with status {status}: {message}")
        return web.Response(status=status, text=f"istio-init: {message}\n")

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
    # Without a handler of its own, its log is printed with tracebacks.
    logging.getLogger("asyncio").addHandler(LogBridge(Throttle(server_log.warn)))
    start = partial(_listen, server_log)
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
    server_log: Logger,
    application: web.Application,
    address: ListenAddress,
    context: ssl.SSLContext | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[int]:
    """Serve an application and yield its port; on exit stop accepting, drain, and close the remaining connections."""
    logger = LogBridge(Throttle(server_log.warn)).logger()
    runner = web.AppRunner(
        application, logger=logger, access_log=None, auto_decompress=False, shutdown_timeout=CLOSE_TIMEOUT
    )
    connections = Connections(runner, Throttle(server_log.warn))
    application.middlewares.append(connections.track)
    await runner.setup()
    sweeping = asyncio.create_task(connections.sweep_periodically())
    try:
        with _bound(address) as listener:
            accepting = asyncio.create_task(connections.accept(listener, context))
            try:
                yield listener.getsockname()[1]
            finally:
                accepting.cancel()
                await asyncio.wait([accepting])
        if drain:
            await drain()
    finally:
        sweeping.cancel()
        await runner.cleanup()
        connections.abort_all()


def _bound(address: ListenAddress) -> socket.socket:
    try:
        return listen(address.address, address.port)
    except OSError as error:
        problem = f"cannot listen on {address.address}:{address.port}: {error.strerror}"
        raise InvalidInput(address.option, problem, "a free port") from None


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


def _answer(body: bytearray, inject: Injector) -> tuple[Answer, bytes]:
    """Answer a review, as data and as JSON."""
    found = answer(body, inject)
    return found, json.dumps(found.review).encode()


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
