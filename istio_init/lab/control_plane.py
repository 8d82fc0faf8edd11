"""The lab's control plane: serves a world to the pods' Envoys over ADS, and pushes changes.

A separate program: `python -m istio_init.lab.control_plane --world FILE --status FILE`. It logs one line per event to
standard output, and writes what was sent, acked and nacked for each connected proxy to the status file. SIGTERM stops it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse

from istio_init.core.errors import InvalidInput
from istio_init.core.files import read_text, write_text
from istio_init.lab.ads import AdsRequest, Stream
from istio_init.lab.events import log
from istio_init.lab.messages import message
from istio_init.lab.resources import Kind, resources
from istio_init.lab.world import World
from istio_init.sidecar.bootstrap.settings import XDS_PORT, XDS_TLS_PORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from istio_init.lab.ads import Push, Snapshot

POLL = 0.15  # seconds between two checks of the world file
STOP_TIMEOUT = 0.5  # seconds for streams to close
KINDS = {kind.type_url: kind for kind in Kind}
# gRPC sets SO_REUSEPORT by default, with which two control planes on one port would share the proxies.
SERVER_OPTIONS = (("grpc.so_reuseport", 0),)

CHANGED = object()  # in a stream's inbox: the world has changed


class ControlPlane(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]  # untyped library
    """Serves a world.

    Args:
        world: the initial world.
        status: the status file.
    """

    def __init__(self, world: World, status: str) -> None:
        self._world = world
        self._status = status
        self._written: str | None = None
        self._streams: dict[Stream, asyncio.Queue[Any]] = {}
        self._write_status()

    def change(self, world: World) -> None:
        """Replace the world, and push the changes."""
        self._world = world
        for inbox in self._streams.values():
            inbox.put_nowait(CHANGED)

    def end(self) -> None:
        """Close all streams."""
        for inbox in self._streams.values():
            inbox.put_nowait(None)

    async def StreamAggregatedResources(  # noqa: N802 - gRPC's name
        self,
        requests: AsyncIterator[Any],
        context: Any,
    ) -> AsyncIterator[Any]:
        """Serve one proxy until it disconnects."""
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        reader = asyncio.create_task(_read(requests, inbox))
        try:
            first = await inbox.get()
            if first is None:
                return
            if not first.node.id:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first request must carry the node")
            with self._connected(first.node.id, inbox) as stream:
                event = first
                while event is not None:
                    for push in self._handle(stream, event):
                        yield _response(push)
                    event = await inbox.get()
        finally:
            reader.cancel()

    @contextmanager
    def _connected(self, node: str, inbox: asyncio.Queue[Any]) -> Iterator[Stream]:
        stream = Stream(node, log)
        self._streams[stream] = inbox
        log("ads connected", node=node)
        try:
            yield stream
        finally:
            del self._streams[stream]
            self._write_status()
            log("ads disconnected", node=node)

    def _handle(self, stream: Stream, event: Any) -> list[Push]:
        if event is CHANGED:
            pushes = stream.update(self._snapshot(stream))
        elif event.type_url in KINDS:
            pushes = stream.request(_parse_request(event), self._snapshot(stream))
        else:
            log("ads unsupported", type=event.type_url, node=stream.node)
            pushes = []
        self._write_status()
        return pushes

    def _snapshot(self, stream: Stream) -> Snapshot:
        return resources(self._world, self._world.proxy(stream.node))

    def _write_status(self) -> None:
        """Write the status file if it has changed; of several streams of a node, the latest one counts."""
        text = json.dumps({stream.node: stream.status() for stream in self._streams}, indent=2) + "\n"
        if text != self._written:
            self._written = text
            try:
                write_text(self._status, text, "--status")
            except InvalidInput as error:
                log("status write failed", message=str(error))


async def _read(requests: AsyncIterator[Any], inbox: asyncio.Queue[Any]) -> None:
    try:
        async for request in requests:
            inbox.put_nowait(request)
    finally:
        inbox.put_nowait(None)


def _parse_request(request: Any) -> AdsRequest:
    return AdsRequest(
        kind=KINDS[request.type_url],
        nonce=request.response_nonce,
        version=request.version_info,
        names=frozenset(request.resource_names),
        error=request.error_detail.message if request.HasField("error_detail") else None,
    )


def _response(push: Push) -> Any:
    answer = DiscoveryResponse(version_info=push.version, nonce=push.nonce, type_url=push.kind.type_url)
    for resource in push.resources:
        answer.resources.add().Pack(message(push.kind, resource, push.kind))
    return answer


def parse(text: str, where: str) -> World:
    """Parse a world, including its extra resources.

    Raises:
        InvalidInput: the world is invalid.
    """
    world = World.from_json(text, where)
    extra = dict(zip((Kind.LDS, Kind.CDS, Kind.EDS, Kind.RDS), world.extra, strict=True))
    for kind, members in extra.items():
        for resource in members:
            message(kind, resource, f"{where}: extra")
    return world


async def watch(control_plane: ControlPlane, path: str, seen: str) -> None:
    """Reload the world whenever its file changes; an invalid file is logged and ignored.

    Args:
        control_plane: the control plane to update.
        path: the world file.
        seen: its contents when last read.
    """
    problem = ""
    while True:
        await asyncio.sleep(POLL)
        try:
            text = read_text(path, "--world")
            if text == seen:
                problem = ""
                continue
            seen = text
            world = parse(text, path)
        except InvalidInput as error:
            if str(error) != problem:
                problem = str(error)
                log("world rejected", message=problem)
        else:
            problem = ""
            log("world loaded", services=len(world.services), pods=len(world.pods))
            control_plane.change(world)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidInput: the world or a certificate cannot be read, or cannot listen on a port.
    """
    text = read_text(arguments.world, "--world")
    world = parse(text, arguments.world)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    control_plane = ControlPlane(world, arguments.status)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(control_plane, server)
    ports = {"port": _bind(server, arguments.address, arguments.port, None)}
    if arguments.certificates:
        ports["tls_port"] = _bind(server, arguments.address, arguments.tls_port, _credentials(Path(arguments.certificates)))
    await server.start()
    watcher = asyncio.create_task(watch(control_plane, arguments.world, text))
    log("listening", address=arguments.address, **ports, services=len(world.services), pods=len(world.pods))
    watcher.add_done_callback(lambda _: stop.set())  # it only exits on its own because of a bug
    await stop.wait()
    watcher.cancel()
    control_plane.end()
    await server.stop(STOP_TIMEOUT)
    with suppress(asyncio.CancelledError):
        await watcher


def _credentials(directory: Path) -> Any:
    names = ("key.pem", "cert-chain.pem", "root-cert.pem")
    key, chain, root = (read_text(str(directory / name), "--certificates").encode() for name in names)
    return grpc.ssl_server_credentials([(key, chain)], root_certificates=root, require_client_auth=True)


def _bind(server: Any, host: str, port: int, credentials: Any) -> int:
    address = f"{host}:{port}"
    try:
        bound: int = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise InvalidInput(
            "--port", f"cannot listen on {address}: {error}", "an address of this host and a free port"
        ) from None
    return bound


def main(words: list[str] | None = None) -> int:
    """Run the control plane, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m istio_init.lab.control_plane", description=__doc__)
    parser.add_argument("--world", required=True, metavar="FILE", help="world to serve, in JSON; reloaded on change")
    parser.add_argument("--status", required=True, metavar="FILE", help="output file for the status of each proxy, in JSON")
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on")  # noqa: S104 - proxies are other hosts
    parser.add_argument("--port", type=int, default=XDS_PORT, help="port for plaintext gRPC; 0 picks a free one")
    parser.add_argument("--tls-port", type=int, default=XDS_TLS_PORT, help="port for mutual TLS; 0 picks a free one")
    parser.add_argument("--certificates", metavar="DIR", help="with cert-chain.pem, key.pem and root-cert.pem; enables TLS")
    try:
        asyncio.run(serve(parser.parse_args(words)))
    except InvalidInput as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
